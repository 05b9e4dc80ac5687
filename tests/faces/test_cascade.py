from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from hyperdream_core.errors import MissingDependencyError
from hyperdream_core.faces import cascade
from hyperdream_core.faces.cascade import CascadeDetector
from hyperdream_core.faces.face import Face, in_order
from hyperdream_core.pictures.files import picture_from_pil

# Eyes and middle of the mouth of the astronaut, read off the picture.
EYES, MOUTH = ((206.0, 109.0), (244.0, 108.0)), (225.0, 150.0)
TURN = Image.Transpose


@pytest.fixture(scope="module")
def detector() -> CascadeDetector:
    return CascadeDetector()


def sure(detector: CascadeDetector, image: Image.Image) -> list[Face]:
    faces = detector.find(picture_from_pil(image, "photo").pixels, 0.5).faces
    return [face for face in faces if face.score >= 0.5]


Place = Callable[[float, float], tuple[float, float]]
VIEWS: dict[str, tuple[Callable[[Image.Image], Image.Image], Place, float]] = {
    "as it is": (lambda a: a, lambda x, y: (x, y), 0),
    "turned left": (lambda a: a.transpose(TURN.ROTATE_90), lambda x, y: (y, 512 - x), -90),
    "upside down": (lambda a: a.transpose(TURN.ROTATE_180), lambda x, y: (512 - x, 512 - y), 180),
    "turned right": (lambda a: a.transpose(TURN.ROTATE_270), lambda x, y: (512 - y, x), 90),
    "mirrored": (lambda a: a.transpose(TURN.FLIP_LEFT_RIGHT), lambda x, y: (512 - x, y), 0),
    "40 px face": (lambda a: a.resize((213, 213), 3), lambda x, y: (x * 213 / 512, y * 213 / 512), 0),
    "close-up": (lambda a: a.crop((175, 55, 275, 165)), lambda x, y: (x - 175, y - 55), 0),
}


@pytest.mark.parametrize("view", VIEWS)
def test_one_face_is_found_where_it_is_and_none_invented(
    detector: CascadeDetector, astronaut: Image.Image, view: str
) -> None:
    change, place, roll = VIEWS[view]
    (face,) = sure(detector, change(astronaut))
    assert face.landmarks is not None and face.roll is not None and not face.is_measured
    off = (face.roll - roll + 180) % 360 - 180
    assert abs(off) < 15
    side = face.side
    eyes, mouth = face.landmarks[:2].mean(0), face.landmarks[3:].mean(0)
    between = tuple(np.mean(EYES, axis=0))
    for found, (x, y) in ((eyes, place(*between)), (mouth, place(*MOUTH))):
        assert float(torch.dist(found, torch.tensor([x, y]))) < 0.13 * side


def test_small_wide_and_flat_pictures_have_no_face(detector: CascadeDetector) -> None:
    for size in ((32, 32), (400, 33), (64, 64)):
        assert sure(detector, Image.new("RGB", size, (90, 120, 150))) == []


def test_noise_has_no_face_and_all_ways_to_look_are_told(detector: CascadeDetector) -> None:
    noise = torch.rand(3, 160, 200, generator=torch.Generator().manual_seed(1))
    search = detector.find(noise, 0.5)
    assert not [face for face in search.faces if face.score >= 0.5]
    assert search.looked.split(", ") == [
        "at 400 px in 5 tilts",
        "on a padded copy",
        "on the quarter turns",
        "on the padded copy's quarter turns",
        "at 800 px",
    ]


def test_of_the_group_photograph_no_face_is_invented(detector: CascadeDetector, group_photograph: Image.Image) -> None:
    """Six people, two of whom look away and tilt their heads: those are not frontal, and missed."""
    faces = in_order(sure(detector, group_photograph), "left-to-right", 886, 1280)
    centres = [tuple(round(value / 50) * 50 for value in face.center) for face in faces]
    assert centres == [(100, 350), (500, 350), (800, 400), (1200, 350)]


def test_without_scikit_image_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from hyperdream_core.faces import cascade

    monkeypatch.setattr(cascade, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="'skimage' is not installed; add it with: pip install scikit"):
        CascadeDetector()


def seen(x: float, turn: int, hits: int) -> cascade._Seen:
    return cascade._Seen(cascade._face(x, 50.0, 40.0, float(turn), min(1.0, hits / 20)), hits, turn)


@pytest.mark.parametrize(
    ("by_turn", "expected"),
    [
        # A group on its head, one of whom answers weakly in the upright picture; then something else beside them.
        ({0: [(50, 12)], 180: [(50, 30), (150, 25), (250, 14)]}, [(1.0, 180), (1.0, 180), (0.7, 180)]),
        ({0: [(350, 15)], 180: [(50, 30), (150, 25)]}, [(1.0, 180), (1.0, 180)]),
        # One who lies down beside people who stand is kept, and so is an upright group with weak faces only.
        ({0: [(50, 30), (150, 12)], 90: [(250, 30)]}, [(1.0, 0), (0.6, 0)]),
        ({0: [(50, 14), (150, 12)], 90: [(250, 30)]}, [(1.0, 90)]),
        ({0: [(50, 14), (150, 12)], 180: [(250, 11)]}, [(0.7, 0), (0.6, 0)]),
    ],
)
def test_the_turn_with_the_most_hits_is_taken_not_the_first_with_any(
    by_turn: dict[int, list[tuple[int, int]]],
    expected: list[tuple[float, int]],
    detector: CascadeDetector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def search(self: CascadeDetector, levels: object, way: cascade._Pass, turn: int) -> list[cascade._Seen]:
        return [] if way.pad else [seen(x, turn, hits) for x, hits in by_turn.get(turn, ())]

    monkeypatch.setattr(CascadeDetector, "_search", search)
    faces = detector.find(torch.zeros(3, 100, 400), 0.5).faces
    assert [(face.score, round(face.roll or 0.0) % 360) for face in faces] == expected
