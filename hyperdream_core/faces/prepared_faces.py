"""Prepared faces, as everything that follows takes them: cut out at any size, and reported in lines a person reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ReferenceImageError
from ..ops.crop import FFHQ_MARGIN
from ..pictures.files import Picture, square_crop
from .face import Face, whole_picture
from .prepare import PrepareConfig, PreparedPicture, PreparedReferences, prepare_references
from .recognizer import aligned_square


@dataclass(frozen=True, eq=False)
class Faces:
    """Prepared references that can be cut out at any size, because each base is trained at its own."""

    prepared: PreparedReferences
    margin: float = FFHQ_MARGIN

    @property
    def weights(self) -> tuple[float, ...]:
        """How much each used picture counts, by its quality; in predicting and in measuring likeness alike."""
        return self.prepared.weights

    def at(self, size: int) -> Tensor:
        """The crops (n, 3, size, size) in 0..1."""
        return torch.stack([self._crop(one, size) for one in self.used])

    @property
    def used(self) -> list[PreparedPicture]:
        """The pictures that were not skipped."""
        return [one for one in self.prepared.pictures if one.crop is not None]

    def _crop(self, one: PreparedPicture, size: int) -> Tensor:
        assert one.crop is not None
        if one.crop.shape[-1] == size:
            return one.crop
        face = chosen_face(one)
        if face.landmarks is None:
            return square_crop(one.picture.pixels, size)
        return aligned_square(one.picture.pixels, face, size, self.margin)


def chosen_face(one: PreparedPicture) -> Face:
    """The face that was taken of a picture; where none was found, its largest centred square."""
    return one.faces[one.chosen - 1] if one.chosen else whole_picture(one.picture.pixels)


def faces_of_crops(crops: Tensor) -> Faces:
    """Pictures (n, 3, h, w) in 0..1 that are crops already, taken as they are.

    Raises:
        ReferenceImageError: of another shape, or none.
    """
    if crops.dim() != 4 or crops.shape[1:2] != (3,) or len(crops) == 0:
        raise ReferenceImageError(
            f"the references have shape {tuple(crops.shape)}, expected (n, 3, h, w) with n of 1 or more; give at "
            "least one picture"
        )
    pictures = [Picture(crop, name=f"picture {number}") for number, crop in enumerate(crops, start=1)]
    config = PrepareConfig(detector="already-cropped")
    return Faces(prepare_references(pictures, min(crops.shape[-2:]), config), config.margin)


def report_text(prepared: PreparedReferences) -> str:
    """The report as lines a person reads."""
    lines = [f"faces looked for by: {prepared.detector}", f"same person: {prepared.agreement}"]
    for number, one in enumerate(prepared.pictures, start=1):
        used = (
            "not used" if one.crop is None else f"face {one.chosen} of {len(one.faces)}" if one.chosen else "all of it"
        )
        remarks = "; ".join(one.quality.remarks) or "no problems found"
        lines.append(f"picture {number}: {used}, quality {one.quality.score:.2f} of 1: {remarks}")
    return "\n".join([*lines, *prepared.notes])
