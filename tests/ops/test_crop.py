from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hyperdream_core.ops.crop import (
    HeadAngle,
    alignment,
    head_angle,
    outside_share,
    roll_of,
    side_of,
    similarity,
    template,
    to_picture,
    turned_landmarks,
    warp,
)


def turned(points: Tensor, degrees: float, scale: float, shift: tuple[float, float]) -> Tensor:
    """Points (n, 2) turned clockwise as seen, scaled and shifted."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return scale * points @ torch.tensor([[cos, sin], [-sin, cos]], dtype=points.dtype) + torch.tensor(shift)


def test_the_template_is_arcfaces_at_margin_1() -> None:
    expected = [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
    torch.testing.assert_close(template(1.0) * 112, torch.tensor(expected, dtype=torch.float64))
    # Twice the margin: half the distances, around the same middle.
    torch.testing.assert_close(template(2.0) - 0.5, (template(1.0) - 0.5) / 2)


def test_the_default_margin_frames_as_ffhq_does() -> None:
    # FFHQ's side: 3.6 times the distance from the middle of the eyes to the middle of the mouth.
    points = template()
    eyes_to_mouth = points[3:].mean(0)[1] - points[:2].mean(0)[1]
    assert float(3.6 * eyes_to_mouth) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("degrees", [0.0, 30.0, 90.0, -135.0, 179.0])
def test_a_similarity_is_found_exactly(degrees: float) -> None:
    source = torch.tensor([[3.0, 5.0], [11.0, 2.0], [7.0, 13.0], [1.0, 1.0]], dtype=torch.float64)
    matrix = similarity(source, turned(source, degrees, 2.5, (7.0, -3.0)))
    torch.testing.assert_close(
        matrix @ torch.cat([source, torch.ones(4, 1)], 1).T, turned(source, degrees, 2.5, (7.0, -3.0)).T
    )
    assert side_of(matrix) == pytest.approx(1 / 2.5)
    torch.testing.assert_close(to_picture(matrix, turned(source, degrees, 2.5, (7.0, -3.0))), source)


def test_noisy_points_are_fitted_as_umeyama_does() -> None:
    from skimage.transform import SimilarityTransform

    generator = torch.Generator().manual_seed(2)
    source = torch.rand(5, 2, generator=generator, dtype=torch.float64)
    target = turned(source, 20, 3.0, (1.0, 2.0)) + 0.1 * torch.rand(5, 2, generator=generator, dtype=torch.float64)
    if hasattr(SimilarityTransform, "from_estimate"):
        expected = SimilarityTransform.from_estimate(source.numpy(), target.numpy())
    else:
        expected = SimilarityTransform()
        expected.estimate(source.numpy(), target.numpy())
    torch.testing.assert_close(similarity(source, target), torch.from_numpy(expected.params[:2]))


@pytest.mark.parametrize("degrees", [0.0, 25.0, 90.0, -90.0, 170.0])
def test_the_roll_is_that_of_the_landmarks(degrees: float) -> None:
    assert roll_of(alignment(turned(template(), degrees, 80.0, (200.0, 150.0)))) == pytest.approx(degrees)


def ramp(height: int, width: int) -> Tensor:
    """(2, h, w): x and y of each pixel's centre, as shares of 100 px."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y]) / 100


@pytest.mark.parametrize("degrees", [0.0, 35.0, 90.0, 180.0])
@pytest.mark.parametrize("size", [9, 40])
def test_a_warp_shows_the_places_its_matrix_names(degrees: float, size: int) -> None:
    landmarks = turned(template(), degrees, 30.0, (45.0, 40.0) if degrees < 90 else (55.0, 45.0)).float()
    matrix = alignment(landmarks)
    crop = warp(ramp(95, 97), matrix, size)
    line = (torch.arange(size) + 0.5) / size
    places = to_picture(matrix, torch.cartesian_prod(line, line).flip(1)).reshape(size, size, 2).permute(2, 0, 1) / 100
    # A linear ramp survives bicubic sampling and the reduction before it; what remains is the edge of the cut.
    torch.testing.assert_close(crop, places.float(), rtol=0, atol=0.004)


def test_a_large_picture_is_averaged_and_not_skipped() -> None:
    stripes = (torch.arange(600) % 2).float().expand(3, 600, 600)
    crop = warp(stripes, alignment(turned(template(), 10, 400.0, (150.0, 60.0))), 32)
    torch.testing.assert_close(crop, torch.full_like(crop, 0.5), rtol=0, atol=0.02)


def test_beyond_the_edge_the_picture_goes_on() -> None:
    picture = torch.full((3, 50, 50), 0.25)
    matrix = alignment(turned(template(), 0, 60.0, (-20.0, 10.0)))
    torch.testing.assert_close(warp(picture, matrix, 24), torch.full((3, 24, 24), 0.25))
    # The square reaches from -20 to 40 in x and from 10 to 70 in y, of which 0 to 40 and 10 to 50 are picture.
    assert outside_share(matrix, 50, 50) == pytest.approx(1 - 40 * 40 / 60**2, abs=0.03)


def test_the_argument_is_left_alone() -> None:
    picture = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0))
    before = picture.clone()
    warp(picture, alignment(turned(template(), 5, 30.0, (4.0, 4.0))), 16)
    assert torch.equal(picture, before)


@pytest.mark.parametrize(
    ("yaw", "pitch", "roll"), [(0, 0, 0), (30, 0, 0), (-40, 10, 0), (0, -25, 15), (20, 15, -100), (-10, -10, 170)]
)
def test_a_turned_head_is_measured(yaw: float, pitch: float, roll: float) -> None:
    points = 3.0 * turned_landmarks(HeadAngle(yaw, pitch, roll)) + torch.tensor([100.0, 80.0])
    angle = head_angle(points)
    assert (angle.yaw, angle.pitch, angle.roll) == pytest.approx((yaw, pitch, roll), abs=1e-4)


def test_signs_are_as_seen_in_the_picture() -> None:
    straight = turned_landmarks(HeadAngle(0, 0, 0))
    right, up = (turned_landmarks(angle)[2] - straight[2] for angle in (HeadAngle(20, 0, 0), HeadAngle(0, 20, 0)))
    assert right[0] > 3 and up[1] < -3
    eyes = turned_landmarks(HeadAngle(0, 0, 20))[:2]
    assert eyes[1, 1] > eyes[0, 1]
    assert F.pairwise_distance(*turned_landmarks(HeadAngle(45, 0, 0))[:2], keepdim=False) < 26
