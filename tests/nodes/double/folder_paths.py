"""ComfyUI's folders: search paths and endings by key, listings by name, nothing outside the folders."""

from __future__ import annotations

from pathlib import Path

models_dir = ""
output_dir = ""
folder_names_and_paths: dict[str, tuple[list[str], set[str]]] = {}


def start_in(folder: Path) -> None:
    """Forget everything and begin with an empty ComfyUI folder."""
    global models_dir, output_dir
    models_dir, output_dir = str(folder / "models"), str(folder / "output")
    folder_names_and_paths.clear()
    folder_names_and_paths["loras"] = (
        [str(folder / "models" / "loras"), str(folder / "output" / "loras")],
        {".safetensors"},
    )


def get_output_directory() -> str:
    return output_dir


def get_input_directory() -> str:
    return str(Path(output_dir).parent / "input")


def get_folder_paths(key: str) -> list[str]:
    return folder_names_and_paths[key][0][:]


def get_filename_list(key: str) -> list[str]:
    folders, endings = folder_names_and_paths[key]
    names = set()
    for folder in folders:
        files = (path for path in Path(folder).rglob("*") if path.is_file())
        # An empty set of endings lists everything.
        names.update(str(path.relative_to(folder)) for path in files if not endings or path.suffix in endings)
    return sorted(names)


def get_full_path(key: str, name: str) -> str | None:
    parts = [part for part in Path("/", name).resolve().parts if part != "/"]
    for folder in folder_names_and_paths[key][0]:
        path = Path(folder, *parts)
        if path.is_file():
            return str(path)
    return None
