"""What travels along our own wires."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..hyperdream_core.pipelines.predictors.stored_hypernetwork import StoredHypernetwork

PREDICTOR = io.Custom("HYPERDREAM_PREDICTOR")
FACES = io.Custom("HYPERDREAM_FACES")
IDENTITY = io.Custom("HYPERDREAM_IDENTITY")
LANDMARKS = io.Custom("FACE_LANDMARKS")
"""ComfyUI's own, of Detect Face Landmarks (MediaPipe)"""


@dataclass(frozen=True, eq=False)
class Predictor:
    """A hypernetwork and the memory manager's handle on it."""

    stored: StoredHypernetwork
    patcher: Any
