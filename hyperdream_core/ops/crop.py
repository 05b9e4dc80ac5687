"""Where a face's landmarks belong in a square crop, the warp that brings them there, and the head's angle.

Points are (x, y) in px; pixel i covers i to i + 1. A crop is described by the matrix (2, 3) that takes a point of the
picture to the unit square. There is one template, ArcFace's, so that what is shown to a predictor and what is measured
by a recogniser differ in their margin only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

# Left and right eye as seen in the picture, tip of the nose, left and right corner of the mouth, in a square of 112 px.
# Source: insightface's `arcface_dst`, the alignment that ArcFace, AuraFace and SFace were trained with.
_ARCFACE = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
_ARCFACE_SIDE = 112.0
# How far the landmarks lie in front of the eyes, in the same px: of the head that OpenCV's tutorials on pose use
# (outer corners of the eyes 450 apart, tip of the nose 135 and corners of the mouth 10 in front of them).
_DEPTHS = (0.0, 0.0, 15.3, 1.1, 1.1)

FFHQ_MARGIN = 1.3
"""Side of the crops of CelebA-HQ and FFHQ as a multiple of ArcFace's: they take 3.6 times the distance from eyes to
mouth, which is 0.363 of ArcFace's square."""


@dataclass(frozen=True)
class HeadAngle:
    """Where a head is turned, degrees; 0 looks into the camera."""

    yaw: float
    """positive to the right as seen in the picture"""
    pitch: float
    """positive up"""
    roll: float
    """positive clockwise as seen in the picture, -180 to 180"""


def template(margin: float = FFHQ_MARGIN) -> Tensor:
    """Landmarks (5, 2) in the unit square, for crops `margin` times as wide as ArcFace's."""
    return 0.5 + (torch.tensor(_ARCFACE, dtype=torch.float64) / _ARCFACE_SIDE - 0.5) / margin


def similarity(source: Tensor, target: Tensor) -> Tensor:
    """The turn, scaling and shift (2, 3) float64 that takes points (n, 2) closest to others (n, 2), by least squares.

    The same as Umeyama's method where no reflection is allowed, which in two dimensions is one complex division.
    """
    source, target = source.double(), target.double()
    source_mean, target_mean = source.mean(0), target.mean(0)
    from_, to = (torch.view_as_complex(points.contiguous()) for points in (source - source_mean, target - target_mean))
    factor = (from_.conj() * to).sum() / from_.abs().square().sum()
    linear = torch.stack([torch.stack([factor.real, -factor.imag]), torch.stack([factor.imag, factor.real])])
    return torch.cat([linear, (target_mean - linear @ source_mean).unsqueeze(1)], dim=1)


def alignment(landmarks: Tensor, margin: float = FFHQ_MARGIN) -> Tensor:
    """The matrix (2, 3) of the upright crop around landmarks (5, 2)."""
    return similarity(landmarks, template(margin))


def side_of(matrix: Tensor) -> float:
    """Side of the crop in px of the picture."""
    return 1.0 / math.sqrt(abs(float(torch.linalg.det(matrix[:, :2].double()))))


def roll_of(matrix: Tensor) -> float:
    """How far the face in the crop is tilted in the picture, degrees, positive clockwise."""
    return -math.degrees(math.atan2(float(matrix[1, 0]), float(matrix[0, 0])))


def to_picture(matrix: Tensor, points: Tensor) -> Tensor:
    """Points (n, 2) of the unit square as points (n, 2) of the picture, float64."""
    points = points.double() - matrix[:, 2].double()
    return torch.linalg.solve(matrix[:, :2].double(), points.T).T


def outside_share(matrix: Tensor, height: int, width: int, steps: int = 40) -> float:
    """Which share of the crop lies outside the picture, 0..1."""
    line = (torch.arange(steps) + 0.5) / steps
    x, y = to_picture(matrix, torch.cartesian_prod(line, line)).unbind(1)
    return float(((x < 0) | (x > width) | (y < 0) | (y > height)).double().mean())


def warp(picture: Tensor, matrix: Tensor, size: int) -> Tensor:
    """The crop (c, size, size) of a picture (c, h, w) in 0..1; beyond its edges the picture's edge pixels go on.

    Reduced before it is sampled, so that large photographs do not alias, and no more of the picture is touched than
    the crop shows.
    """
    height, width = picture.shape[-2:]
    corners = to_picture(matrix, torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    limits = torch.tensor([width, height], dtype=torch.float64)
    shrink = max(1.0, side_of(matrix) / size)
    # Three sampled pixels around the crop are what the bicubic filter reaches.
    low = (corners.amin(0) - 3 * shrink).floor().clamp(torch.zeros(2, dtype=torch.float64), limits - 1)
    high = (corners.amax(0) + 3 * shrink).ceil().clamp(low + 1, limits)
    (left, top), (right, bottom) = low.long().tolist(), high.long().tolist()
    part = picture[None, :, top:bottom, left:right].float()
    if shrink > 1.0:
        reduced = [max(1, round(length / shrink)) for length in part.shape[-2:]]
        part = F.interpolate(part, reduced, mode="bicubic", antialias=True)
    line = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    square = torch.cartesian_prod(line, line).flip(1)
    places = (to_picture(matrix, square) - low) / (high - low) * 2.0 - 1.0
    grid = rearrange(places, "(h w) d -> 1 h w d", h=size).to(part)
    sampled = F.grid_sample(part, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return sampled[0].clamp(0, 1).to(picture)


def head_angle(landmarks: Tensor) -> HeadAngle:
    """Where the head with these landmarks (5, 2) is turned, good to about ten degrees.

    Fits a mean head as a camera far away sees it: the scaled rows of a rotation, by least squares.
    """
    head = _mean_head()
    seen = landmarks.double() - landmarks.double().mean(0)
    camera = torch.linalg.lstsq(head, seen).solution.T
    left, _, right = torch.linalg.svd(camera, full_matrices=False)
    rows = left @ right
    away = torch.linalg.cross(rows[0], rows[1])
    yaw = math.degrees(math.asin(max(-1.0, min(1.0, float(away[0])))))
    pitch = -math.degrees(math.atan2(float(away[1]), float(away[2])))
    roll = math.degrees(math.atan2(float(rows[1, 0]), float(rows[0, 0])))
    return HeadAngle(yaw, pitch, roll)


def turned_landmarks(angle: HeadAngle) -> Tensor:
    """Landmarks (5, 2) of the mean head turned to this angle, in px of ArcFace's square around (0, 0)."""
    yaw, pitch, roll = (math.radians(value) for value in (-angle.yaw, -angle.pitch, angle.roll))
    about_y = [[math.cos(yaw), 0.0, math.sin(yaw)], [0.0, 1.0, 0.0], [-math.sin(yaw), 0.0, math.cos(yaw)]]
    about_x = [[1.0, 0.0, 0.0], [0.0, math.cos(pitch), -math.sin(pitch)], [0.0, math.sin(pitch), math.cos(pitch)]]
    about_z = [[math.cos(roll), -math.sin(roll), 0.0], [math.sin(roll), math.cos(roll), 0.0], [0.0, 0.0, 1.0]]
    turn = torch.tensor(about_z).double() @ torch.tensor(about_y).double() @ torch.tensor(about_x).double()
    return (_mean_head() @ turn.T)[:, :2]


def _mean_head() -> Tensor:
    """(5, 3) float64 around its mean; x right, y down, z away from the camera."""
    flat = torch.tensor(_ARCFACE, dtype=torch.float64)
    head = torch.cat([flat, -torch.tensor(_DEPTHS, dtype=torch.float64).unsqueeze(1)], dim=1)
    return head - head.mean(0)
