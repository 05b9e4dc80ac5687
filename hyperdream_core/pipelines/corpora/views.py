"""Other views of one photograph: crops, turns and light that differ, so that a reference is not the picture itself.

Whoever learns from one photograph of a person, shown as reference and wanted as picture, learns to copy it. So the
picture stays as it is, and what is altered is the reference, which nobody has to draw.

Source: our choice; augmented references against copying are usual since E4T, arXiv:2302.12228, and PhotoMaker,
arXiv:2312.04461.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...faces.prepare import PreparedPicture
from ...faces.prepared_faces import chosen_face
from ...ops.crop import alignment, warp

_CLOSER, _TURN, _SHIFT, _LIGHT = 1.25, 10.0, 0.06, 0.2
"""The most by which a view differs: how much closer, degrees, share of the side, and brightness, contrast and colour
as shares of what they were."""


def other_views(one: PreparedPicture, size: int, count: int, margin: float, generator: torch.Generator) -> Tensor:
    """Views (count, 3, size, size) in 0..1 of the face that was taken of a picture.

    Each is up to a quarter closer, turned by up to 10 degrees, moved by up to 6 % of its side, mirrored or not, and up
    to a fifth brighter or darker, with more or less contrast and colour.

    Args:
        one: the prepared picture.
        size: side, px.
        count: how many.
        margin: of the crop that they differ from, as a multiple of ArcFace's square.
        generator: on the CPU; five numbers a view are drawn, and three of light.
    """
    matrix = _crop_of(one, margin)
    views = []
    for _ in range(count):
        closer, turn, right, down, mirrored = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        light = torch.rand(3, generator=generator, dtype=torch.float64).mul(2).sub(1).mul(_LIGHT).add(1).tolist()
        seen = _moved(matrix, 1 + (_CLOSER - 1) * closer, _TURN * (2 * turn - 1), right, down)
        view = _lit(warp(one.picture.pixels, seen, size), *light)
        views.append(view.flip(-1) if mirrored < 0.5 else view)
    return torch.stack(views)


def _crop_of(one: PreparedPicture, margin: float) -> Tensor:
    """The matrix (2, 3) that takes points of the picture to the unit square of its crop."""
    face = chosen_face(one)
    if face.landmarks is not None:
        return alignment(face.landmarks, margin)
    # As `square_crop` has it: the largest centred square.
    height, width = one.picture.pixels.shape[-2:]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    return torch.tensor([[1.0, 0.0, -left], [0.0, 1.0, -top]], dtype=torch.float64) / side


def _moved(matrix: Tensor, closer: float, degrees: float, right: float, down: float) -> Tensor:
    """The crop brought closer, turned about its middle and moved."""
    angle = math.radians(degrees)
    turn = closer * torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64
    )
    shift = _SHIFT * (2 * torch.tensor([right, down], dtype=torch.float64) - 1)
    middle = torch.full((2,), 0.5, dtype=torch.float64)
    linear, offset = matrix[:, :2].double(), matrix[:, 2].double()
    return torch.cat([turn @ linear, (turn @ (offset - middle) + middle + shift).unsqueeze(1)], dim=1)


def _lit(picture: Tensor, brightness: float, contrast: float, colour: float) -> Tensor:
    """A picture (3, h, w) in another light."""
    grey = picture.mean(0, keepdim=True)
    picture = grey + colour * (picture - grey)
    return (brightness * (picture.mean() + contrast * (picture - picture.mean()))).clamp(0, 1)
