"""Says which packages HyperDream misses here, and the command that adds each. It installs nothing itself.

ComfyUI-Manager and Automatic1111/Forge run this file when they add the extension or start; anyone may run it by hand:
`python install.py`. Standard library only, and always exits with 0 so that it never keeps a host from starting.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

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


def missing(packages: dict[str, tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of `packages` that this Python cannot import, as (pip names, purpose); nothing is imported."""
    return [entry for name, entry in packages.items() if find_spec(name) is None]


def report() -> list[str]:
    """The lines to print: one when all is there, otherwise one per missing package with its command."""
    if sys.version_info < OLDEST_PYTHON:
        found = ".".join(str(part) for part in sys.version_info[:3])
        oldest = ".".join(str(part) for part in OLDEST_PYTHON)
        return [f"HyperDream: this is Python {found}, {oldest} or newer is needed; install a newer Python."]
    required, optional = missing(REQUIRED), missing(OPTIONAL)
    if required:
        lines = [f"HyperDream: {len(required)} required package(s) missing. Add with:"]
    else:
        lines = ["HyperDream: everything required is here."]
    lines += [f"  {_command(names)}    # {purpose}" for names, purpose in required]
    if optional:
        lines += ["HyperDream: optional, add only what you want:"]
        lines += [f"  {_command(names)}    # {purpose}" for names, purpose in optional]
    return lines


def _command(names: str) -> str:
    # The full path: a portable ComfyUI has its own Python, and a bare `pip` would serve another one.
    return f'"{sys.executable}" -m pip install {names}'


if __name__ == "__main__":
    print("\n".join(report()))
