"""Likeness: how much pictures look like a subject, by a recogniser that had no part in making them; never a failure.

The subject is who was *chosen*: in each reference the face that was prepared, not the largest one there. Several
references make one embedding, the mean of theirs weighted by their quality, as in a prediction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import MissingDependencyError
from ..ops.finite import sound
from .detectors import DetectorName, open_detector
from .face import Face, FaceDetector, whole_picture
from .onnx_models import find_model
from .prepare import PreparedPicture
from .prepared_faces import Faces, chosen_face
from .recognizer import OnnxRecognizer, Recognizer

NOT_MEASURED = "not measured: there is no recogniser; give ArcFace, AuraFace or SFace as an ONNX file"


class Likeness:
    """Cosine between the faces in pictures and the subject.

    Args:
        faces: the subject's references.
        recognizer: who measures.
        detector: finds the faces in what was drawn, and in references that were taken as already cropped; a recogniser
            that looks at whole pictures needs none.
        min_score: surest the detector must be of a face, 0..1.
    """

    def __init__(
        self, faces: Faces, recognizer: Recognizer, detector: FaceDetector | None = None, min_score: float = 0.5
    ) -> None:
        self.recognizer, self.detector, self.min_score = recognizer, detector, min_score
        self._subject = self._embedded_subject(faces)

    @property
    def about(self) -> str:
        """Who measures, and on what."""
        where = f" on faces found by {self.detector.about}" if self._aligns and self.detector is not None else ""
        return f"measured by {self.recognizer.about}{where}"

    def __call__(self, pictures: Tensor) -> Tensor:
        """Likeness (b,) of pictures (b, 3, h, w) in 0..1; NaN where a picture, or every reference, shows no face."""
        nothing = torch.tensor(float("nan"))
        if self._subject is None:
            return nothing.repeat(len(pictures))
        drawn = [self._embedded(picture) for picture in pictures]
        return torch.stack([nothing if one is None else one @ self._subject for one in drawn])

    @property
    def _aligns(self) -> bool:
        return self.recognizer.needs_landmarks

    def _embedded_subject(self, faces: Faces) -> Tensor | None:
        """(d,), unit length; None where no reference shows a face."""
        crops = faces.at(self.recognizer.side)
        total: Tensor | None = None
        for one, crop, weight in zip(faces.used, crops, faces.weights, strict=True):
            embedding = self._of_reference(one) if self._aligns else self._whole(crop)
            if embedding is not None:
                total = embedding * weight if total is None else total + embedding * weight
        return None if total is None else F.normalize(total, dim=0)

    def _of_reference(self, one: PreparedPicture) -> Tensor | None:
        face = chosen_face(one)
        if face.landmarks is None:
            # Taken as already cropped: nobody has looked for the face in it yet.
            return self._embedded(one.picture.pixels)
        return self._measured(one.picture.pixels, face)

    def _embedded(self, picture: Tensor) -> Tensor | None:
        if not self._aligns:
            return self._whole(picture)
        assert self.detector is not None, "a recogniser of aligned faces comes with a detector"
        found = self.detector.find(picture, self.min_score).faces
        faces: list[Face] = [face for face in found if face.score >= self.min_score]
        if not faces:
            return None
        return self._measured(picture, max(faces, key=lambda face: face.side))

    def _whole(self, picture: Tensor) -> Tensor:
        return self._measured(picture, whole_picture(picture))

    def _measured(self, picture: Tensor, face: Face) -> Tensor:
        embedding = self.recognizer.embed(picture, face).cpu()
        return sound(embedding, f"what {self.recognizer.about} sees", "use another recogniser", (None,))


def open_likeness(
    faces: Faces,
    recognizer: Recognizer | None,
    detector: DetectorName = "auto",
    folders: Sequence[Path] = (),
    min_score: float = 0.5,
) -> tuple[Likeness | None, str]:
    """Likeness to these faces, and who measures it; or None, and why nobody does.

    Args:
        faces: the subject's references.
        recognizer: who measures; None takes the best one in the folders, if there is one.
        detector: who looks for faces in what was drawn; `already-cropped`, which looks for none, is taken as `auto`.
        folders: where recognisers and insightface's packs may lie.
        min_score: surest the detector must be of a face, 0..1.
    """
    try:
        if recognizer is None:
            if not folders or find_model("recognizer", folders) is None:
                return None, NOT_MEASURED
            recognizer = OnnxRecognizer(folders)
        looker = None
        if recognizer.needs_landmarks:
            looker = open_detector("auto" if detector == "already-cropped" else detector, folders)[0]
    except MissingDependencyError as error:
        return None, f"not measured: {error}"
    likeness = Likeness(faces, recognizer, looker, min_score)
    return likeness, likeness.about


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
