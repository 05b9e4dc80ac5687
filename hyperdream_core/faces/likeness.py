"""How much pictures look like a subject, by a recogniser that had no part in making them; never a failure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .face import Face, FaceDetector
from .recognizer import Recognizer

NOT_MEASURED = "not measured: there is no recogniser; give ArcFace, AuraFace or SFace as an ONNX file"


@dataclass(frozen=True, eq=False)
class LikenessJudge:
    """Cosine between the faces in pictures and those in references."""

    recognizer: Recognizer
    detector: FaceDetector
    min_score: float = 0.5

    def __call__(self, pictures: Tensor, references: Tensor) -> Tensor:
        """Likeness (b,) of pictures (b, 3, h, w) to the subject of references (n, 3, h, w).

        NaN where a picture shows no face, or none of the references does.
        """
        known = [self._embedded(reference) for reference in references]
        seen = [embedding for embedding in known if embedding is not None]
        if not seen:
            return torch.full((len(pictures),), float("nan"))
        subject = torch.nn.functional.normalize(torch.stack(seen).mean(0), dim=0)
        drawn = [self._embedded(picture) for picture in pictures]
        return torch.stack([torch.tensor(float("nan")) if one is None else one @ subject for one in drawn])

    def _embedded(self, picture: Tensor) -> Tensor | None:
        faces: list[Face] = [
            face for face in self.detector.find(picture, self.min_score).faces if face.score >= self.min_score
        ]
        if not faces:
            return None
        return self.recognizer.embed(picture, max(faces, key=lambda face: face.side)).cpu()


def independence(recognizer: Recognizer, training: Mapping[str, Any]) -> str:
    """A warning if the predictor's file says that it was trained with, or conditioned on, this very recogniser.

    Args:
        recognizer: that measures.
        training: the facts in the predictor's file.
    """
    network = recognizer.about.partition(" ")[0].rpartition(".")[0] or recognizer.about
    if network.lower() in json.dumps(dict(training), default=str).lower():
        return f"the predictor was trained with {network}, so likeness measured by it flatters the predictor"
    return ""
