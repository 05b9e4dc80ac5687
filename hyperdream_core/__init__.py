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

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .verbs import (
        DrawConfig,
        ExportConfig,
        HyperDreamError,
        PolishConfig,
        PredictConfig,
        PrepareConfig,
        draw,
        export,
        load_base,
        open_predictor,
        polish,
        predict,
        prepare,
        read_identity,
        save,
    )

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
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import verbs

    return getattr(verbs, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
