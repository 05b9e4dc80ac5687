"""HyperDream without any host: one face picture in, a person you can prompt for out.

    import hyperdream_core as hyperdream

    base, predictor = hyperdream.load_base("miniature"), hyperdream.open_predictor("miniature")
    faces = hyperdream.prepare("portrait.png", base)
    identity = hyperdream.polish(base, faces, hyperdream.predict(predictor, faces))
    hyperdream.save(identity, "identity.safetensors")
    hyperdream.save(hyperdream.draw(base, "a [V] face, smiling, at the beach", identity), "smiling.png")

These names stay as they are within a major version; everything below is open to be read and may move. Nothing is
loaded before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import HyperDreamError
    from .faces.prepare import PrepareConfig
    from .formats.identity_file import read_identity
    from .pipelines.diffusers.loading import load_base
    from .pipelines.drawing.draw import DrawConfig
    from .pipelines.export import ExportConfig
    from .pipelines.polishing.polish import PolishConfig
    from .pipelines.predictors.predict import PredictConfig
    from .pipelines.predictors.predictor import open_predictor
    from .verbs import draw, export, polish, predict, prepare, save

_PLACES = {
    "load_base": "pipelines.diffusers.loading",
    "open_predictor": "pipelines.predictors.predictor",
    "prepare": "verbs",
    "predict": "verbs",
    "polish": "verbs",
    "draw": "verbs",
    "save": "verbs",
    "export": "verbs",
    "read_identity": "formats.identity_file",
    "PrepareConfig": "faces.prepare",
    "PredictConfig": "pipelines.predictors.predict",
    "PolishConfig": "pipelines.polishing.polish",
    "DrawConfig": "pipelines.drawing.draw",
    "ExportConfig": "pipelines.export",
    "HyperDreamError": "errors",
}

__all__ = [
    "DrawConfig",
    "ExportConfig",
    "HyperDreamError",
    "PolishConfig",
    "PredictConfig",
    "PrepareConfig",
    "draw",
    "export",
    "load_base",
    "open_predictor",
    "polish",
    "predict",
    "prepare",
    "read_identity",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PLACES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
