from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from hyperdream_core.errors import ConfigError, ReferenceImageError
from hyperdream_core.faces import prepare as module
from hyperdream_core.faces.face import Face, Search, face_from_box, face_from_landmarks
from hyperdream_core.faces.prepare import PrepareConfig, prepare_references
from hyperdream_core.ops.crop import HeadAngle, turned_landmarks
from hyperdream_core.pictures.files import Picture, picture_from_pil, square_crop


def noise(name: str, seed: int = 0, height: int = 120, width: int = 160) -> Picture:
    return Picture(torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)), (), name)


SMALL, LARGE = face_from_box((10, 20, 40, 50)), face_from_box((60, 20, 130, 100))


class Recognizer:
    """Knows people by their pictures' names, which it reads off the first pixel."""

    about = "a recogniser of tests"
    same_person = 0.5
    needs_landmarks = False

    def __init__(self, people: dict[float, int]) -> None:
        self.people = people

    def embed(self, picture: Tensor, face: Face) -> Tensor:
        return torch.eye(4)[self.people[round(float(picture[0, 0, 0]), 4)]]


def test_what_a_host_found_is_taken_and_the_largest_face_is_the_default() -> None:
    prepared = prepare_references([noise("a.png")], 64, found=[[SMALL, LARGE]])
    (one,) = prepared.pictures
    assert prepared.pixels.shape == (1, 3, 64, 64) and one.chosen == 1 and one.faces == (LARGE, SMALL)
    assert prepared.detector == "faces handed in by the caller"
    (warning,) = [note for note in prepared.notes if "faces" in note]
    assert (
        "reference 1 of 1 (a.png, 160x120 px): shows 2 faces; the largest is taken; ask for another by its number"
        in warning
    )


@pytest.mark.parametrize(
    ("order", "number", "expected"), [("size", 2, SMALL), ("left-to-right", 1, SMALL), ("centre", 1, LARGE)]
)
def test_each_face_can_be_chosen(order: str, number: int, expected: Face) -> None:
    config = PrepareConfig(face=number, face_order=order)  # type: ignore[arg-type]
    prepared = prepare_references([noise("a.png")], 64, config, [[LARGE, SMALL]])
    one = prepared.pictures[0]
    assert one.faces[one.chosen - 1] is expected
    assert not [note for note in prepared.notes if "faces" in note]
    marks = [face["chosen"] for face in one.report()["faces"]]
    assert marks.count(True) == 1 and marks[number - 1]


def test_a_number_beyond_the_faces_is_refused() -> None:
    with pytest.raises(ReferenceImageError, match=r"shows 2 faces, but face 3 was asked for; ask for one of 1 to 2"):
        prepare_references([noise("a.png")], 64, PrepareConfig(face=3), [[SMALL, LARGE]])


def blind(monkeypatch: pytest.MonkeyPatch, *scores: float) -> None:
    class Blind:
        name, about = "blind", "a detector of tests"

        def find(self, picture: Tensor, min_score: float) -> Search:
            return Search(tuple(replace(LARGE, score=score) for score in scores), "at 3 sizes")

    monkeypatch.setattr(module, "open_detector", lambda name, folders: (Blind(), ("chosen for the test",)))


def test_without_a_face_it_stops_and_says_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    blind(monkeypatch, 0.31)
    with pytest.raises(
        ReferenceImageError,
        match=r"reference 1 of 2 \(b\.png, 160x120 px\) shows no face: best score 0\.31, 0\.50 is needed; a detector"
        r" of tests looked at 3 sizes\. Use a photograph .* on_no_face to skip or whole-picture",
    ):
        prepare_references([noise("b.png"), noise("c.png")], 64)
    prepared = prepare_references([noise("b.png")], 64, PrepareConfig(min_score=0.3))
    assert prepared.pictures[0].chosen == 1 and prepared.notes[0] == "chosen for the test"


def test_skipping_leaves_a_picture_out_and_says_so() -> None:
    config = PrepareConfig(on_no_face="skip")
    prepared = prepare_references([noise("a.png"), noise("b.png")], 64, config, [[], [LARGE]])
    assert len(prepared.pixels) == len(prepared.weights) == 1 and len(prepared.pictures) == 2
    assert prepared.pictures[0].report()["used"] == "nothing"
    assert any("a.png" in note and note.endswith("; skipped") for note in prepared.notes)
    with pytest.raises(ReferenceImageError, match="none of the 1 pictures shows a face, and all were skipped"):
        prepare_references([noise("a.png")], 64, config, [[]])


def test_the_whole_picture_can_take_the_faces_place() -> None:
    picture = noise("a.png")
    prepared = prepare_references([picture], 64, PrepareConfig(on_no_face="whole-picture"), [[]])
    assert torch.equal(prepared.pixels[0], square_crop(picture.pixels, 64))
    assert prepared.weights == (0.5,) and prepared.pictures[0].report()["used"] == "whole picture"


def test_already_cropped_changes_nothing_but_the_size() -> None:
    picture = noise("a.png")
    prepared = prepare_references([picture, picture], 32, PrepareConfig(detector="already-cropped"))
    assert torch.equal(prepared.pixels[1], square_crop(picture.pixels, 32)) and prepared.weights == (1.0, 1.0)
    assert prepared.notes == ()


def test_a_worse_picture_weighs_less_and_is_told() -> None:
    turned = turned_landmarks(HeadAngle(60, 0, 0)).float() * 0.8 + torch.tensor([80.0, 60.0])
    away = face_from_landmarks(turned, box=(40, 20, 120, 100))
    prepared = prepare_references([noise("a.png"), noise("b.png")], 64, None, [[LARGE], [away]])
    assert prepared.weights[1] < prepared.weights[0] / 2
    (angle,) = [face["angle"] for face in prepared.pictures[1].report()["faces"]]
    assert angle["yaw"] == pytest.approx(60, abs=0.1)
    assert any("(b.png, 160x120 px): turned away: 60 degrees right" in note for note in prepared.notes)


def test_the_astronaut_is_cut_out_upright_however_it_lies(astronaut: Image.Image) -> None:
    config = PrepareConfig(detector="cascade")
    pictures = [
        picture_from_pil(astronaut, "upright.png"),
        picture_from_pil(astronaut.transpose(Image.Transpose.ROTATE_90), "turned.png"),
    ]
    prepared = prepare_references(pictures, 96, config)
    assert any("turned.png" in note and "on its side and is turned upright" in note for note in prepared.notes)
    upright, turned = (crop - crop.mean() for crop in prepared.pixels)
    alike = float((upright * turned).sum() / (upright.norm() * turned.norm()))
    assert alike > 0.8, alike


def test_the_astronaut_is_found_when_cut_out_with_alpha(astronaut: Image.Image) -> None:
    cut_out = Image.new("L", astronaut.size)
    ImageDraw.Draw(cut_out).ellipse((130, 20, 320, 300), fill=255)
    lifted = astronaut.copy()
    lifted.putalpha(cut_out)
    for background in ((255, 255, 255), (20, 90, 40)):
        prepared = prepare_references(
            [picture_from_pil(lifted, "lifted.png", background)], 96, PrepareConfig(detector="cascade")
        )
        (face,) = [face["box"] for face in prepared.pictures[0].report()["faces"]]
        assert face[0] < 222 < face[2] and face[1] < 120 < face[3]


@pytest.mark.parametrize(
    ("people", "agreement", "warned"),
    [
        ((0, 0, 0), "one person", ()),
        ((0, 1), "two people", ("0.png, 160x120 px and 1.png, 160x120 px may show two people",)),
        (
            (0, 0, 1),
            "several people mixed",
            ("2.png, 160x120 px disagrees with the other references (cosine 0.00, among",),
        ),
        ((0, 1, 2), "several people mixed", ("the references may show several people mixed; most of all",)),
    ],
)
def test_a_reference_of_somebody_else_is_named(
    people: tuple[int, ...], agreement: str, warned: tuple[str, ...]
) -> None:
    pictures = [noise(f"{index}.png", seed=index) for index in range(len(people))]
    known = {round(float(picture.pixels[0, 0, 0]), 4): who for picture, who in zip(pictures, people, strict=True)}
    config = PrepareConfig(detector="already-cropped")
    prepared = prepare_references(pictures, 32, config, recognizer=Recognizer(known))
    assert prepared.agreement.startswith(agreement) and len(prepared.notes) == len(warned)
    for note, expected in zip(prepared.notes, warned, strict=True):
        assert note.startswith(expected)


def test_without_a_recogniser_agreement_is_not_measured_and_that_is_no_failure() -> None:
    config = PrepareConfig(detector="already-cropped")
    prepared = prepare_references([noise("a.png"), noise("b.png")], 32, config)
    assert prepared.agreement.startswith("not measured: there is no recogniser")
    demanding = Recognizer({})
    demanding.needs_landmarks = True
    prepared = prepare_references([noise("a.png"), noise("b.png")], 32, config, recognizer=demanding)
    assert prepared.agreement.startswith("not measured: a recogniser of tests needs faces")


def test_the_report_is_json() -> None:
    prepared = prepare_references([noise("a.png")], 64, found=[[SMALL, LARGE]])
    data = json.loads(json.dumps(prepared.report()))
    assert [face["number"] for face in data["pictures"][0]["faces"]] == [1, 2]
    assert prepared.pictures[0].preview().size == (160, 120)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"face": -1}, "a face's number must be 0 or more, got -1"),
        ({"min_score": 2.0}, r"min_score must lie in 0\.\.1"),
        ({"margin": 0.5}, r"margin must lie in 1\.\.4"),
        ({"background": (0, 0)}, "background must be three numbers"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        PrepareConfig(**change)  # type: ignore[arg-type]


def test_missing_pictures_and_faces_are_refused() -> None:
    with pytest.raises(ReferenceImageError, match="no reference picture given"):
        prepare_references([], 64)
    with pytest.raises(ConfigError, match="faces of 1 pictures were handed in for 2 pictures"):
        prepare_references([noise("a.png")] * 2, 64, found=[[LARGE]])
