"""What is wrong with a face as a reference, in words, before anything is spent on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.crop import HeadAngle
from .face import Face

GOOD_SIDE = 64.0
"""A face this wide, px, has all that a base of 512 px can show of it; below it counts less and less."""
LARGEST_YAW, LARGEST_PITCH = 35.0, 30.0
LARGEST_OUTSIDE = 0.12
DARKEST, BRIGHTEST = 0.16, 0.88
SHARPEST = 0.011
"""Sharpness (see `sharpness`) below which a face is called blurred. Five frontal faces in scikit-image's and
insightface's pictures reach 0.048 to 0.065; blurred by a Gaussian of a twentieth of their width 0.0075 to 0.0095."""
_MEASURED_AT = 64


@dataclass(frozen=True)
class Quality:
    """A face as a reference."""

    score: float
    """0..1; how much it counts beside other references of the same subject"""
    remarks: tuple[str, ...]
    """what is wrong, one sentence each without a full stop; empty if nothing is"""

    @property
    def text(self) -> str:
        return "; ".join(self.remarks) or "good"


def judge_quality(face: Face, tight: Tensor, outside: float) -> Quality:
    """The quality of one face.

    Args:
        face: as found.
        tight: its crop (3, h, w) at ArcFace's margin.
        outside: share of the reference's crop that lies outside the picture.
    """
    score, remarks = 1.0, []
    if face.side < GOOD_SIDE:
        remarks.append(f"too small: the face is {face.side:.0f} px wide, {GOOD_SIDE:.0f} px or more show who it is")
        score *= max(0.1, face.side / GOOD_SIDE)
    found = sharpness(tight)
    if found < SHARPEST:
        remarks.append(f"blurred: sharpness {found:.4f}, below {SHARPEST:g}")
        score *= max(0.2, found / SHARPEST)
    angle = face.angle
    if angle is not None and _turned(angle) > 1:
        remarks.append(f"turned away: {_direction(angle)}")
        score *= max(0.2, 1 / _turned(angle) ** 2)
    if outside > LARGEST_OUTSIDE:
        remarks.append(f"cut off: {outside:.0%} of the crop lies outside the picture")
        score *= max(0.3, 1 - outside)
    light = float(tight.float().mean())
    if light < DARKEST:
        remarks.append(f"too dark: mean brightness {light:.2f}, {DARKEST:g} or more is wanted")
        score *= max(0.3, light / DARKEST)
    elif light > BRIGHTEST:
        remarks.append(f"overexposed: mean brightness {light:.2f}, {BRIGHTEST:g} or less is wanted")
        score *= 0.5
    return Quality(score, tuple(remarks))


def sharpness(tight: Tensor) -> float:
    """Contrast of the finest detail of a tight crop (3, h, w), relative to the contrast of the whole.

    The standard deviation of the Laplacian at 64 px over that of the brightness, divided by 8, so that neither light
    nor resolution decides: an enlarged face is as blurred as it looks at that size.
    """
    grey = F.interpolate(tight[None].float().mean(1, keepdim=True), (_MEASURED_AT,) * 2, mode="area")
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]], device=grey.device)
    detail = F.conv2d(grey, kernel[None, None])[..., 2:-2, 2:-2]
    return float(detail.std() / (grey.std() + 0.02) / 8.0)


def _turned(angle: HeadAngle) -> float:
    return max(abs(angle.yaw) / LARGEST_YAW, abs(angle.pitch) / LARGEST_PITCH)


def _direction(angle: HeadAngle) -> str:
    sides = (("right" if angle.yaw > 0 else "left", angle.yaw), ("up" if angle.pitch > 0 else "down", angle.pitch))
    return " and ".join(f"{abs(value):.0f} degrees {side}" for side, value in sides if abs(value) > 20)
