"""What travels along our own wires."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..hyperdream_core.data.images import square_crop
from ..hyperdream_core.data.recognizer import aligned_square
from ..hyperdream_core.pipelines.prepare import PreparedPicture, PreparedReferences
from ..hyperdream_core.pipelines.stored_hypernetwork import StoredHypernetwork

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


@dataclass(frozen=True, eq=False)
class Faces:
    """Prepared references that can be cut out at any size, because each base is trained at its own."""

    prepared: PreparedReferences
    margin: float

    def at(self, size: int) -> Tensor:
        """The crops (n, 3, size, size) in 0..1."""
        used = [one for one in self.prepared.pictures if one.crop is not None]
        return torch.stack([self._crop(one, size) for one in used])

    def _crop(self, one: PreparedPicture, size: int) -> Tensor:
        assert one.crop is not None
        if one.crop.shape[-1] == size:
            return one.crop
        face = one.faces[one.chosen - 1] if one.chosen else None
        if face is None or face.landmarks is None:
            return square_crop(one.picture.pixels, size)
        return aligned_square(one.picture.pixels, face, size, self.margin)
