"""How much two faces look alike, by a recogniser that the user provides as an ONNX file.

ArcFace networks (insightface's packs: non-commercial; AuraFace: Apache-2.0) embed in 512 numbers, OpenCV's SFace
(Apache-2.0) in 128. None of them is ever trained with here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import FileFormatError
from ..ops.crop import alignment, warp
from ..pictures.files import resize
from .face import Face
from .onnx_models import open_model, require_model

_SIDE = 112


class Recognizer(Protocol):
    """Measures who is in a picture."""

    @property
    def about(self) -> str:
        """What measures, for reports."""
        ...

    @property
    def same_person(self) -> float:
        """Cosine above which two embeddings are taken for one person's."""
        ...

    @property
    def needs_landmarks(self) -> bool:
        """Measures aligned faces only, not pictures that were never searched."""
        ...

    @property
    def side(self) -> int:
        """Of the squares it looks at, px."""
        ...

    def embed(self, picture: Tensor, face: Face) -> Tensor:
        """The identity embedding (d,), unit length, of one face in a picture (3, h, w) in 0..1."""
        ...


class OnnxRecognizer:
    """ArcFace, AuraFace or SFace."""

    needs_landmarks = True
    side = _SIDE

    def __init__(self, places: Sequence[Path]) -> None:
        """Open a recogniser: a file, or the best one in folders.

        Raises:
            MissingDependencyError: onnxruntime is not installed.
            FileFormatError: none there, or a file that is none.
        """
        self._model = open_model(require_model("recognizer", places))
        outputs = self._model.output_shapes
        width = outputs[0][-1] if len(outputs) == 1 and outputs[0] else None
        if width not in (128, 512) or self._model.input_shape[-2:] != (_SIDE, _SIDE):
            raise FileFormatError(
                self._model.path,
                f"turns {self._model.input_shape} into {outputs}, but a recogniser turns {_SIDE}x{_SIDE} px into 512 "
                "numbers (ArcFace, AuraFace) or 128 (SFace); use one of these",
            )
        # SFace takes 0..255 as it is (OpenCV's FaceRecognizerSF), ArcFace -1..1 (insightface's ArcFaceONNX).
        self._is_sface = width == 128
        # SFace: OpenCV's own threshold. ArcFace: different people hardly ever reach it, poor pictures of one may not.
        self.same_person = 0.363 if self._is_sface else 0.28

    @property
    def about(self) -> str:
        return self._model.about

    def embed(self, picture: Tensor, face: Face) -> Tensor:
        """The identity embedding (512,) or (128,), unit length.

        Raises:
            FileFormatError: the network does not put out finite numbers.
        """
        square = (aligned_square(picture, face, _SIDE) * 255.0)[None].cpu()
        batch = square if self._is_sface else (square - 127.5) / 127.5
        embedding = torch.from_numpy(np.asarray(self._model.run(batch.numpy())[0], dtype=np.float32)).flatten()
        if not bool(embedding.isfinite().all()):
            raise FileFormatError(self._model.path, "puts out numbers that are not finite; get the file again")
        return F.normalize(embedding, dim=0)


def aligned_square(picture: Tensor, face: Face, size: int, margin: float = 1.0) -> Tensor:
    """The crop (3, size, size) of a face, `margin` times as wide as ArcFace's; a face without landmarks is its box."""
    if face.landmarks is not None:
        return warp(picture, alignment(face.landmarks, margin), size)
    left, top, right, bottom = (round(value) for value in face.box)
    return resize(picture[:, top:bottom, left:right], size, size)
