"""ComfyUI's folders: where identities, predictors, LoRAs and face models lie, and its server's routes."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import folder_paths

from ...hyperdream_core.errors import FileFormatError
from ...hyperdream_core.formats import identity_file
from ...hyperdream_core.formats.container import read_names
from ...hyperdream_core.pipelines.predictors.predictor import KINDS

IDENTITIES = "hyperdream"
LORAS = "loras"
PREDICTORS = "hyperdream_predictors"
_HOLD = {IDENTITIES: (identity_file.KIND,), PREDICTORS: tuple(KINDS)}
"""kinds of files that belong into each folder"""

_looked_at: dict[Path, tuple[tuple[int, int], str]] = {}
"""for each file its time and size when its header was last read, and what is wrong with it"""


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
    """Names of the saved identities, relative to their folders; other files are left out, with a word in the log."""
    names = folder_paths.get_filename_list(IDENTITIES)
    return _of_the_kind(IDENTITIES, [name for name in names if Path(name).parts[0] != "predictors"])


def predictor_names() -> list[str]:
    """Names of the predictors' files, relative to their folders; others are left out, with a word in the log."""
    return _of_the_kind(PREDICTORS, folder_paths.get_filename_list(PREDICTORS))


def why_left_out(key: str, name: str) -> str:
    """What is wrong with a file of that name in the folders of `key`; empty if nothing is, or there is none."""
    path = folder_paths.get_full_path(key, name) if name else None
    return "" if path is None else _problem(Path(path), _HOLD[key])[0]


def _of_the_kind(key: str, names: Sequence[str]) -> list[str]:
    """The names of files whose header says that they are of the folder's kind."""
    fit = []
    for name in names:
        path = folder_paths.get_full_path(key, name)
        if path is None:
            continue
        problem, is_new = _problem(Path(path), _HOLD[key])
        if not problem:
            fit.append(name)
        elif is_new:
            logging.warning("HyperDream: a file is left out of the list: %s", problem)
    return fit


def _problem(path: Path, kinds: Collection[str]) -> tuple[str, bool]:
    """What is wrong with a file, and whether it was looked at just now; only a file that has changed is opened."""
    try:
        state = path.stat()
        stamp = state.st_mtime_ns, state.st_size
        if path in _looked_at and _looked_at[path][0] == stamp:
            return _looked_at[path][1], False
        kind = read_names(path)[0].get("kind")
        problem = "" if kind in kinds else f"{path.name}: is {'another kind of file' if kind else 'no file of ours'}"
    except FileFormatError as error:
        problem = f"{path.name}: {error.problem}"
    except OSError as error:
        return f"{path.name}: cannot be read ({error.strerror})", True
    _looked_at[path] = stamp, problem
    return problem, True


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
