from __future__ import annotations

import pytest
import torch

from hyperdream_core.errors import ConfigError, ReferenceImageError
from hyperdream_core.faces.face import (
    AlreadyCropped,
    Face,
    HandedInFaces,
    face_from_box,
    face_from_landmarks,
    in_order,
)
from hyperdream_core.ops.crop import HeadAngle, turned_landmarks

FIVE = turned_landmarks(HeadAngle(0, 0, 0)).float() + torch.tensor([100.0, 90.0])


def face(left: float, top: float, side: float) -> Face:
    return Face((left, top, left + side, top + side), 1.0)


@pytest.mark.parametrize(
    ("order", "expected"), [("size", [1, 0, 2]), ("left-to-right", [2, 0, 1]), ("centre", [0, 2, 1])]
)
def test_faces_are_counted_in_the_order_asked_for(order: str, expected: list[int]) -> None:
    faces = [face(40, 40, 20), face(70, 5, 30), face(20, 60, 10)]
    assert in_order(faces, order, 100, 100) == [faces[index] for index in expected]  # type: ignore[arg-type]


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown order of faces 'beauty'; known: size, left-to-right, centre"):
        in_order([], "beauty", 10, 10)  # type: ignore[arg-type]


def test_a_box_places_landmarks_but_measures_none() -> None:
    found = face_from_box((10, 20, 110, 120))
    assert found.landmarks is not None and found.landmarks[0].tolist() == pytest.approx([40.0, 62.0])
    assert found.angle is None and found.roll == pytest.approx(0, abs=0.5) and found.side == 100


@pytest.mark.parametrize("box", [(10, 10, 10, 50), (0, 0, float("nan"), 5), (0, 0, float("inf"), 5), (9, 9, 2, 2)])
def test_a_box_without_area_is_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(ReferenceImageError, match="expected left, top, right and bottom in px with an area"):
        face_from_box(box)


def test_larger_sets_of_landmarks_are_reduced_to_five() -> None:
    sixty_eight, mesh = torch.rand(68, 2), torch.rand(478, 3)
    sixty_eight[36:42], sixty_eight[42:48] = FIVE[0], FIVE[1]
    sixty_eight[[30, 48, 54]] = FIVE[2:]
    mesh[[33, 133], :2], mesh[[362, 263], :2], mesh[[1, 61, 291], :2] = FIVE[0], FIVE[1], FIVE[2:]
    for points in (sixty_eight, mesh, FIVE):
        found = face_from_landmarks(points)
        assert found.landmarks is not None and found.is_measured
        torch.testing.assert_close(found.landmarks, FIVE)
        assert found.angle is not None and found.angle.yaw == pytest.approx(0, abs=0.01)


def test_the_box_around_five_landmarks_holds_the_face() -> None:
    left, top, right, bottom = face_from_landmarks(FIVE).box
    assert left < FIVE[:, 0].min() - 15 and right > FIVE[:, 0].max() + 15
    assert top < FIVE[0, 1] - 30 and bottom > FIVE[3, 1] + 15


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (torch.rand(6, 2), r"shape \(6, 2\), expected \(n, 2\) px with n of 5, 68, 468, 478"),
        (torch.full((5, 2), 3.0), "lie in one place"),
        (FIVE * float("nan"), "not finite"),
    ],
)
def test_landmarks_that_cannot_be_used_are_refused(points: torch.Tensor, said: str) -> None:
    with pytest.raises(ReferenceImageError, match=said):
        face_from_landmarks(points)


def test_faces_handed_in_must_lie_in_the_picture() -> None:
    inside, outside = face(10, 10, 20), face(300, 10, 20)
    assert HandedInFaces((inside,)).find(torch.zeros(3, 50, 60), 0.5).faces == (inside,)
    with pytest.raises(ReferenceImageError, match=r"face 2 .* around \(310, 20\) px, but the picture has 60x50 px"):
        HandedInFaces((inside, outside)).find(torch.zeros(3, 50, 60), 0.5)


def test_already_cropped_is_the_centred_square() -> None:
    (found,) = AlreadyCropped().find(torch.zeros(3, 50, 60), 0.5).faces
    assert found.box == (5.0, 0.0, 55.0, 50.0) and found.landmarks is None and found.roll is None
