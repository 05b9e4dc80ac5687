"""Says which packages HyperDream misses here, and the command that adds each. It installs nothing itself.

ComfyUI-Manager and Automatic1111/Forge run this file when they add the extension or start; anyone may run it by hand:
`python install.py`. Standard library only, and always exits with 0 so that it never keeps a host from starting.

Automatic1111 and Forge name the releases that they run with, and newer ones break them: there each command leaves those
as they are.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

OLDEST_PYTHON = (3, 10)

# import name -> (pip name, what it is for)
REQUIRED = {
    "torch": ("torch", "all computing"),
    "numpy": ("numpy", "all computing"),
    "safetensors": ("safetensors", "reading and writing identities"),
    "einops": ("einops", "all computing"),
    "PIL": ("pillow", "reading pictures"),
    "tqdm": ("tqdm", "progress bars"),
    "transformers": ("transformers", "text and image encoders"),
}
OPTIONAL = {
    "skimage": ("scikit-image", "finding faces in uncropped pictures"),
    "diffusers": ("diffusers accelerate", "the command line; host programs do without"),
    "onnxruntime": ("onnxruntime", "insightface's face finder and likeness, if you have its models"),
}
PINS = "requirements_versions.txt"
"""in the folder of Automatic1111 and of Forge: the releases that they run with"""
FOR_MINIATURE = {
    "a1111": {"diffusers": "diffusers==0.32.2", "accelerate": "accelerate==0.21.0"},
    "forge": {"diffusers": "diffusers==0.31.0", "accelerate": "accelerate==0.31.0"},
}
"""what to add without its dependencies, which are there in releases that it works with"""


def web_ui(places: list[Path]) -> tuple[str, Path] | None:
    """Which web UI one of these folders is, `a1111` or `forge`, and the folder; None if none is."""
    for folder in places:
        if (folder / "modules" / "launch_utils.py").is_file() and (folder / PINS).is_file():
            return ("forge" if (folder / "modules_forge").is_dir() else "a1111"), folder
    return None


def missing(packages: dict[str, tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of `packages` that this Python cannot import, as (pip names, purpose); nothing is imported."""
    return [entry for name, entry in packages.items() if find_spec(name) is None]


def report(host: tuple[str, Path] | None = None) -> list[str]:
    """The lines to print: one when all is there, otherwise one per missing package with its command.

    Args:
        host: a web UI and its folder, as `web_ui` has found them.
    """
    if sys.version_info < OLDEST_PYTHON:
        found = ".".join(str(part) for part in sys.version_info[:3])
        oldest = ".".join(str(part) for part in OLDEST_PYTHON)
        return [f"HyperDream: this is Python {found}, {oldest} or newer is needed; install a newer Python."]
    required, optional = missing(REQUIRED), missing(OPTIONAL)
    if host is not None:
        optional = [entry for entry in optional if entry != OPTIONAL["diffusers"]] + _for_miniature(host[0])
    if required:
        lines = [f"HyperDream: {len(required)} required package(s) missing. Add with:"]
    else:
        lines = ["HyperDream: everything required is here."]
    lines += [f"  {_command(names, host)}    # {purpose}" for names, purpose in required]
    if optional:
        lines += ["HyperDream: optional, add only what you want:"]
        lines += [f"  {_command(names, host)}    # {purpose}" for names, purpose in optional]
    return lines


def _for_miniature(host: str) -> list[tuple[str, str]]:
    absent = [wanted for name, wanted in FOR_MINIATURE[host].items() if find_spec(name) is None]
    return [("--no-deps " + " ".join(absent), "making people on the miniature, to try it")] if absent else []


def _command(names: str, host: tuple[str, Path] | None = None) -> str:
    # The full path: a portable ComfyUI has its own Python, and a bare `pip` would serve another one.
    pins = f'-c "{host[1] / PINS}" ' if host is not None and not names.startswith("--no-deps") else ""
    return f'"{sys.executable}" -m pip install {pins}{names}'


if __name__ == "__main__":
    # The host runs it in its own folder; by hand it may be run anywhere, and lies in the host's extensions.
    print("\n".join(report(web_ui([Path.cwd(), *Path(__file__).absolute().parents[2:3]]))))
