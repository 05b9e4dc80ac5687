"""Bases and predictors beside the host's checkpoint: those that come with HyperDream, and the user's own predictors."""

from __future__ import annotations

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


@lru_cache(maxsize=1)
def shipped_base(name: str) -> Any:
    """A base that comes with HyperDream, read once.

    Raises:
        MissingDependencyError: diffusers or accelerate is missing.
    """
    for package, wanted in (("diffusers", "diffusers==0.32.2"), ("accelerate", "accelerate")):
        if find_spec(package) is None:
            raise MissingDependencyError(package, f'"{sys.executable}" -m pip install --no-deps {wanted}')
    from hyperdream_core.pipelines.diffusers.loading import load_base

    return load_base(name)


def drawn_beside(base: Any, identity: Identity, prompts: tuple[str, str], steps: int, seed: int) -> list[Image.Image]:
    """Pictures without and with the identity, of a prompt without and with the person."""
    from hyperdream_core.pipelines.drawing.draw import DrawConfig, draw

    config = DrawConfig(steps=steps, seed=seed)
    both = zip(prompts, (None, identity), strict=True)
    return [to_pil(draw(base, [prompt], adapter, config)[0].cpu()) for prompt, adapter in both]


def predictor_for(family: str, folder: Path) -> Predictor | None:
    """The predictor for a base family: its own, if one is shipped, or the newest of the folder."""
    own = bundled_predictor(family)
    files = sorted(folder.glob("*.safetensors"), key=lambda path: -path.stat().st_mtime)
    for file in [own] if own is not None else files:
        try:
            predictor = _opened(file, file.stat().st_mtime_ns)
        except HyperDreamError:
            # Somebody else's file, or a predictor of a newer release; the next one may fit.
            continue
        if predictor.family == family:
            return predictor
    return None


@lru_cache(maxsize=2)
def _opened(path: Path, changed: int) -> Predictor:
    return open_predictor(path)
