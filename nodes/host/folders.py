"""ComfyUI's folders: where identities, predictors, LoRAs and face models lie, and its server's routes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import folder_paths

from ...hyperdream_core.errors import FileFormatError

IDENTITIES = "hyperdream"
LORAS = "loras"
PREDICTORS = "hyperdream_predictors"


def register_folders() -> None:
    """Tell ComfyUI of our model folders; paths that the user's extra_model_paths.yaml names stay and come first."""
    own = Path(folder_paths.models_dir) / "hyperdream"
    _register(IDENTITIES, [own, output_folder("hyperdream")])
    places = [Path(place) for place in folder_paths.get_folder_paths(IDENTITIES)]
    _register(PREDICTORS, [place / "predictors" for place in places if place != output_folder("hyperdream")])


def _register(key: str, places: Sequence[Path]) -> None:
    known, endings = folder_paths.folder_names_and_paths.get(key, ([], set()))
    paths = [*known, *(str(place) for place in places if str(place) not in known)]
    # A folder that only extra_model_paths.yaml named has no endings, which would list every file in it.
    folder_paths.folder_names_and_paths[key] = (paths, {*endings, ".safetensors"})


def output_folder(*parts: str) -> Path:
    """A folder within ComfyUI's output folder, made if it is missing by whoever writes there."""
    return Path(folder_paths.get_output_directory()).joinpath(*parts)


def input_folder() -> Path:
    """Where Load Image looks for pictures."""
    return Path(folder_paths.get_input_directory())


def identity_folders() -> list[Path]:
    """Where identities lie, in the order in which ComfyUI looks for them."""
    return [Path(place) for place in folder_paths.get_folder_paths(IDENTITIES)]


def identity_names() -> list[str]:
    """Names of the saved identities, relative to their folders; no file is opened for it."""
    names = folder_paths.get_filename_list(IDENTITIES)
    return [name for name in names if Path(name).parts[0] != "predictors"]


def predictor_names() -> list[str]:
    """Names of the predictors' files, relative to their folders."""
    return list(folder_paths.get_filename_list(PREDICTORS))


def lora_names() -> list[str]:
    """Names of the LoRA files that ComfyUI's own loader offers."""
    return [name for name in folder_paths.get_filename_list(LORAS) if name.endswith(".safetensors")]


def stored_file(key: str, name: str) -> Path:
    """The file of that name in one of the folders of `key`.

    Raises:
        FileFormatError: there is none; a name that leads out of the folders counts as such.
    """
    path = folder_paths.get_full_path(key, name) if name else None
    if path is None:
        places = ", ".join(folder_paths.get_folder_paths(key))
        raise FileFormatError(
            name or "(nothing chosen)",
            f"there is no such file in {places}; save or copy it there, refresh ComfyUI, and choose it again",
        )
    return Path(path)


def face_model_folders() -> tuple[Path, ...]:
    """Where users of ComfyUI keep insightface's packs."""
    places = folder_paths.folder_names_and_paths.get("insightface", ([], set()))[0]
    return (*(Path(place) for place in places), Path(folder_paths.models_dir) / "insightface")


def routes() -> Any:
    """The server's table of routes, which packs may add to while they are loaded."""
    from server import PromptServer

    return PromptServer.instance.routes
