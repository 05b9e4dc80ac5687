from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageFilter

from hyperdream_core.faces.face import Face, face_from_box, face_from_landmarks
from hyperdream_core.faces.quality import Quality, judge_quality, sharpness
from hyperdream_core.faces.recognizer import aligned_square
from hyperdream_core.ops.crop import HeadAngle, turned_landmarks
from hyperdream_core.pictures.files import picture_from_pil

FACE = face_from_box((172, 62, 278, 180))


def quality(image: Image.Image, face: Face = FACE, outside: float = 0.0) -> Quality:
    return judge_quality(face, aligned_square(picture_from_pil(image, "photo").pixels, face, 112), outside)


def test_a_good_photograph_has_nothing_wrong(astronaut: Image.Image) -> None:
    found = quality(astronaut)
    assert found == Quality(1.0, ()) and found.text == "good"


def test_each_fault_is_named_and_counts(astronaut: Image.Image) -> None:
    scale = 100 / 512
    small = Face(tuple(value * scale for value in FACE.box), 1.0, FACE.landmarks * scale)  # type: ignore[arg-type, operator]
    for image, face, outside, said in (
        (astronaut.filter(ImageFilter.GaussianBlur(6)), FACE, 0.0, "blurred: sharpness"),
        (astronaut.point(lambda value: value // 8), FACE, 0.0, "too dark: mean brightness 0.0"),
        (astronaut.point(lambda value: 255 - (255 - value) // 8), FACE, 0.0, "overexposed: mean brightness 0.9"),
        (astronaut, FACE, 0.3, "cut off: 30% of the crop"),
        (astronaut.resize((100, 100), 3), small, 0.0, "too small: the face is 21 px wide, 64 px or more"),
    ):
        found = quality(image, face, outside)
        assert found.text.startswith(said) and len(found.remarks) == 1, found
        assert 0 < found.score < 1


def test_a_head_turned_away_is_named_with_its_side() -> None:
    points = turned_landmarks(HeadAngle(-50, 5, 0)) * 1.5 + torch.tensor([80.0, 80.0])
    tight = torch.rand(3, 112, 112, generator=torch.Generator().manual_seed(0))
    found = judge_quality(face_from_landmarks(points, box=(0, 0, 160, 160)), tight, 0.0)
    assert found.remarks == ("turned away: 50 degrees left",) and found.score == pytest.approx((35 / 50) ** 2)


def test_sharpness_ignores_light_and_falls_with_blur(astronaut: Image.Image) -> None:
    def of(image: Image.Image) -> float:
        return sharpness(aligned_square(picture_from_pil(image, "photo").pixels, FACE, 112))

    dim = astronaut.point(lambda value: value // 2)
    assert of(dim) == pytest.approx(of(astronaut), rel=0.15)
    blurred = [of(astronaut.filter(ImageFilter.GaussianBlur(radius))) for radius in (1, 3, 6)]
    assert of(astronaut) > blurred[0] > blurred[1] > blurred[2]
