"""Bases and predictors beside the host's checkpoint: those that come with HyperDream, and the user's own predictors."""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from hyperdream_core.bundled import bundled_predictor
from hyperdream_core.errors import HyperDreamError, MissingDependencyError
from hyperdream_core.identity import Identity
from hyperdream_core.pictures.files import to_pil
from hyperdream_core.pipelines.predictors.predictor import Predictor, open_predictor

from .host import is_forge

_RELEASES = {
    False: {"diffusers": "0.32.2", "accelerate": "0.21.0"},
    True: {"diffusers": "0.31.0", "accelerate": "0.31.0"},
}
"""of packages that go with what the host has pinned, in Automatic1111 and in Forge; newer ones bring what breaks it"""


@lru_cache(maxsize=1)
def shipped_base(name: str) -> Any:
    """A base that comes with HyperDream, read once.

    Raises:
        MissingDependencyError: diffusers or accelerate is missing.
    """
    for package, release in _RELEASES[is_forge()].items():
        if find_spec(package) is None:
            command = f'"{sys.executable}" -m pip install --no-deps {package}=={release}'
            raise MissingDependencyError(package, command)
    from hyperdream_core.pipelines.diffusers.loading import load_base

    return load_base(name)


def drawn_beside(base: Any, identity: Identity, prompts: tuple[str, str], steps: int, seed: int) -> list[Image.Image]:
    """Pictures without and with the identity, of a prompt without and with the person."""
    from hyperdream_core.pipelines.drawing.draw import DrawConfig, draw

    config = DrawConfig(steps=steps, seed=seed)
    both = zip(prompts, (None, identity), strict=True)
    return [to_pil(draw(base, [prompt], adapter, config)[0].cpu()) for prompt, adapter in both]


def predictor_for(family: str, folder: Path) -> tuple[Predictor | None, list[str]]:
    """The predictor for a base family: its own, if one is shipped, or the newest of the folder.

    Files of the folder that cannot be read end nothing: the next one may fit.

    Returns:
        The predictor, or None; and for each file that was passed over a sentence that says why.
    """
    own = bundled_predictor(family)
    notes = []
    for file in [own] if own is not None else _newest_first(folder):
        try:
            predictor = _opened(file, file.stat().st_mtime_ns)
        except (HyperDreamError, OSError) as error:
            notes.append(f"a file of the predictors' folder was passed over: {short(error, file)}")
            continue
        if predictor.family == family:
            return predictor, notes
    return None, notes


def short(error: Exception, file: Path) -> str:
    """What an error says, with a file called by its name alone."""
    text = str(error).replace(f"{file.parent}{os.sep}", "")
    return text if isinstance(error, HyperDreamError) else f"{file.name} cannot be read ({text})"


def _newest_first(folder: Path) -> list[Path]:
    dated = []
    for path in folder.glob("*.safetensors"):
        try:
            dated.append((-path.stat().st_mtime, path))
        except OSError:
            # A link that leads nowhere, or a file that is gone by now.
            continue
    return [path for _, path in sorted(dated)]


@lru_cache(maxsize=2)
def _opened(path: Path, changed: int) -> Predictor:
    return open_predictor(path)
