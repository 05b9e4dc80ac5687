"""What every face detector answers, and how one face is chosen where a picture shows several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..errors import ConfigError, ReferenceImageError
from ..ops.crop import HeadAngle, alignment, head_angle, roll_of

FaceOrder = Literal["size", "left-to-right", "centre"]

# Where the five landmarks lie in a box that hugs a face from hairline to chin, as shares of its sides.
_IN_BOX = ((0.30, 0.42), (0.70, 0.42), (0.50, 0.60), (0.34, 0.77), (0.66, 0.77))
# Which points of larger sets they are: iBUG's 68, and MediaPipe's 468 (478 with irises). Several are averaged.
_IN_LARGER_SETS = {
    5: ((0,), (1,), (2,), (3,), (4,)),
    68: (range(36, 42), range(42, 48), (30,), (48,), (54,)),
    468: ((33, 133), (362, 263), (1,), (61,), (291,)),
    478: ((33, 133), (362, 263), (1,), (61,), (291,)),
}


@dataclass(frozen=True, eq=False)
class Face:
    """One face in a picture."""

    box: tuple[float, float, float, float]
    """left, top, right, bottom in px"""
    score: float
    """how sure the detector is, 0..1"""
    landmarks: Tensor | None = None
    """(5, 2) px, as `ops.crop` orders them; None takes the box for the crop"""
    is_measured: bool = False
    """the landmarks were seen in the picture; otherwise they are where a frontal face in this box has them"""

    @property
    def side(self) -> float:
        """Width of the box, px; of the narrower side if the face lies down."""
        left, top, right, bottom = self.box
        return min(right - left, bottom - top)

    @property
    def center(self) -> tuple[float, float]:
        """Of the box, px."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    @property
    def roll(self) -> float | None:
        """Tilt in the picture, degrees clockwise, where it is known."""
        return None if self.landmarks is None else roll_of(alignment(self.landmarks))

    @property
    def angle(self) -> HeadAngle | None:
        """Where the head is turned, if that was measured."""
        return head_angle(self.landmarks) if self.landmarks is not None and self.is_measured else None


@dataclass(frozen=True, eq=False)
class Search:
    """What a detector saw in one picture."""

    faces: tuple[Face, ...]
    """surest first, weak ones too"""
    looked: str
    """how it looked, to go on after "looked"; for whoever wonders why a face was not found"""


class FaceDetector(Protocol):
    """Finds faces in pictures."""

    @property
    def name(self) -> str:
        """As a user asks for it."""
        ...

    @property
    def about(self) -> str:
        """What runs where, such as a model's file and its execution provider."""
        ...

    def find(self, picture: Tensor, min_score: float) -> Search:
        """Faces in a picture (3, h, w) in 0..1; it may stop looking once one has that score."""
        ...


@dataclass(frozen=True, eq=False)
class HandedInFaces:
    """The faces that a host has already found in a picture."""

    faces: tuple[Face, ...]
    name: str = "handed-in"
    about: str = "faces handed in by the caller"

    def find(self, picture: Tensor, min_score: float) -> Search:
        """The faces handed in.

        Raises:
            ReferenceImageError: one of them lies outside the picture.
        """
        height, width = picture.shape[-2:]
        for number, face in enumerate(self.faces, start=1):
            x, y = face.center
            if not (0 <= x <= width and 0 <= y <= height):
                raise ReferenceImageError(
                    f"face {number} that was handed in lies around ({x:.0f}, {y:.0f}) px, but the picture has "
                    f"{width}x{height} px; hand in boxes and landmarks in px of this very picture"
                )
        return Search(self.faces, "at what the caller handed in")


@dataclass(frozen=True)
class AlreadyCropped:
    """No search: the picture's largest centred square is the crop."""

    name: str = "already-cropped"
    about: str = "no detector; pictures taken as already cropped"

    def find(self, picture: Tensor, min_score: float) -> Search:
        """The whole picture as one face of score 1."""
        return Search((whole_picture(picture),), "at nothing, as told")


def whole_picture(picture: Tensor, score: float = 1.0) -> Face:
    """The largest centred square of a picture (3, h, w) in the place of a face."""
    height, width = picture.shape[-2:]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    return Face((float(left), float(top), float(left + side), float(top + side)), score)


def face_from_box(box: Sequence[float], score: float = 1.0) -> Face:
    """A face of which only the box (left, top, right, bottom; px, hairline to chin) is known, taken as upright.

    Raises:
        ReferenceImageError: the box has no area or is not finite.
    """
    left, top, right, bottom = (float(value) for value in box)
    # Written so that NaN is refused as well.
    if not (right - left > 1 and bottom - top > 1 and abs(left + top + right + bottom) < float("inf")):
        raise ReferenceImageError(
            f"a face's box is ({left:g}, {top:g}, {right:g}, {bottom:g}), expected left, top, right and bottom in px "
            "with an area; correct it, or hand in none"
        )
    corner, sides = torch.tensor([left, top]), torch.tensor([right - left, bottom - top])
    return Face((left, top, right, bottom), score, corner + torch.tensor(_IN_BOX) * sides)


def face_from_landmarks(landmarks: Tensor, score: float = 1.0, box: Sequence[float] | None = None) -> Face:
    """A face of known landmarks (n, 2 or 3) px: five as `ops.crop` orders them, iBUG's 68, or MediaPipe's 468 or 478.

    Raises:
        ReferenceImageError: another number of points, points that coincide, or numbers that are not finite.
    """
    if landmarks.dim() != 2 or len(landmarks) not in _IN_LARGER_SETS or landmarks.shape[1] not in (2, 3):
        known = ", ".join(map(str, _IN_LARGER_SETS))
        raise ReferenceImageError(
            f"a face's landmarks have shape {tuple(landmarks.shape)}, expected (n, 2) px with n of {known}; convert "
            "them, or hand in its box"
        )
    points = landmarks[:, :2].detach().cpu().float()
    five = torch.stack([points[list(which)].mean(0) for which in _IN_LARGER_SETS[len(points)]])
    if not bool(points.isfinite().all()) or float(five.std(0).min()) < 0.5:
        raise ReferenceImageError(
            "a face's landmarks are not finite or lie in one place; correct them, or hand in none"
        )
    if box is None:
        low, high = (points.amin(0), points.amax(0)) if len(points) > 5 else _box_around(five)
        box = (*low.tolist(), *high.tolist())
    left, top, right, bottom = (float(value) for value in box)
    return Face((left, top, right, bottom), score, five, is_measured=True)


def in_order(faces: Sequence[Face], order: FaceOrder, height: int, width: int) -> list[Face]:
    """The faces, counted from 1 when one is asked for: the largest, the leftmost or the most central one first."""
    keys = {
        "size": lambda face: -face.side,
        "left-to-right": lambda face: face.center[0],
        "centre": lambda face: (face.center[0] - width / 2) ** 2 + (face.center[1] - height / 2) ** 2,
    }
    if order not in keys:
        raise ConfigError(f"unknown order of faces {order!r}; known: {', '.join(keys)}")
    return sorted(faces, key=keys[order])


def _box_around(five: Tensor) -> tuple[Tensor, Tensor]:
    """Corners of an upright box from hairline to chin around five landmarks, by where they lie in one."""
    inner = torch.tensor(_IN_BOX)
    span = (five.amax(0) - five.amin(0)) / (inner.amax(0) - inner.amin(0))
    # A face turned away or lying down is as large as its longer span says.
    span = span.max().expand(2) * torch.tensor([1.0, 1.0])
    middle = (five.amax(0) + five.amin(0)) / 2
    shift = (inner.amax(0) + inner.amin(0)) / 2
    return middle - shift * span, middle + (1 - shift) * span
