"""Prepared faces in the hands of a host: cut out at any size, reported in lines a person reads, shown with numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..pictures.files import square_crop
from .prepare import PreparedPicture, PreparedReferences
from .recognizer import aligned_square


@dataclass(frozen=True, eq=False)
class Faces:
    """Prepared references that can be cut out at any size, because each base is trained at its own."""

    prepared: PreparedReferences
    margin: float

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
        face = one.faces[one.chosen - 1] if one.chosen else None
        if face is None or face.landmarks is None:
            return square_crop(one.picture.pixels, size)
        return aligned_square(one.picture.pixels, face, size, self.margin)


def report_text(prepared: PreparedReferences) -> str:
    """The report as lines a person reads."""
    lines = [f"faces looked for by: {prepared.detector}", f"same person: {prepared.agreement}"]
    for number, one in enumerate(prepared.pictures, start=1):
        used = (
            "not used" if one.crop is None else f"face {one.chosen} of {len(one.faces)}" if one.chosen else "all of it"
        )
        remarks = "; ".join(one.quality.remarks) or "nothing to complain of"
        lines.append(f"picture {number}: {used}, quality {one.quality.score:.2f} of 1: {remarks}")
    return "\n".join([*lines, *prepared.notes])
