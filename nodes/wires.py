"""What travels along our own wires."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..hyperdream_core.pipelines.predictors.predictor import Predictor

PREDICTOR = io.Custom("HYPERDREAM_PREDICTOR")
FACES = io.Custom("HYPERDREAM_FACES")
IDENTITY = io.Custom("HYPERDREAM_IDENTITY")
LANDMARKS = io.Custom("FACE_LANDMARKS")
"""ComfyUI's own, of Detect Face Landmarks (MediaPipe)"""


@dataclass(frozen=True, eq=False)
class LoadedPredictor:
    """A predictor and the memory manager's handle on its network."""

    predictor: Predictor
    patcher: Any
