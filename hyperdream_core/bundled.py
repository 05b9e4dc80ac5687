"""Where the files that come with HyperDream lie: the miniature's weights and the example portrait."""

from __future__ import annotations

from pathlib import Path

from .errors import FileFormatError

SHIPPED = "miniature"
"""The family whose base and predictor come along; taken where nobody names another."""

_BESIDE_CORE = Path(__file__).resolve().parents[1]


def bundled_weights() -> Path:
    """The folder that holds `miniature/` and any other weights we ship.

    Raises:
        FileFormatError: the copy at hand came without its weights.
    """
    return _bundled("weights")


def bundled_examples() -> Path:
    """The folder that holds the example portrait.

    Raises:
        FileFormatError: the copy at hand came without its examples.
    """
    return _bundled("examples")


def bundled_base(family: str) -> Path | None:
    """The diffusers folder of the base that is shipped for a family; None where none is."""
    folder = bundled_weights() / family / "base"
    return folder if folder.is_dir() else None


def bundled_predictor(family: str) -> Path | None:
    """The predictor that is shipped for a family; None where none is."""
    file = bundled_weights() / family / "hypernetwork.safetensors"
    return file if file.is_file() else None


def _bundled(name: str) -> Path:
    # `hyperdream_NAME` first: beside an installed core a folder called `weights` would be somebody else's.
    places = [_BESIDE_CORE / f"hyperdream_{name}", _BESIDE_CORE / name]
    for place in places:
        if place.is_dir():
            return place
    raise FileFormatError(
        places[-1],
        f"is not there, nor is {places[0]}, so this copy of HyperDream came without its {name}; install it again",
    )
