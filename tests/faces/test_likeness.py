from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyperdream_core.faces.face import Face, Search, face_from_box
from hyperdream_core.faces.likeness import NOT_MEASURED, Likeness, independence, open_likeness
from hyperdream_core.faces.prepare import PrepareConfig, prepare_references
from hyperdream_core.faces.prepared_faces import Faces, faces_of_crops
from hyperdream_core.pictures.files import Picture


class Detector:
    name, about = "tests", "a detector of tests"

    def find(self, picture: Tensor, min_score: float) -> Search:
        """A face in every picture that is not black; a smaller and a weak one besides."""
        if not picture.any():
            return Search((), "")
        return Search((face_from_box((0, 0, 5, 5)), face_from_box((0, 0, 9, 9), 0.4), face_from_box((0, 0, 8, 8))), "")


class Recognizer:
    """Embeds the colour in the middle of a face."""

    about, same_person, needs_landmarks, side = "glintr100.onnx on CPUExecutionProvider", 0.5, True, 8

    def embed(self, picture: Tensor, face: Face) -> Tensor:
        x, y = (int(value) for value in face.center)
        return torch.nn.functional.normalize(picture[:, y, x], dim=0)


class WholePictures(Recognizer):
    needs_landmarks = False


RED, YELLOW, BLACK = (
    torch.tensor(colour)[:, None, None].expand(3, 16, 16) for colour in ([1.0, 0, 0], [1.0, 1, 0], [0.0, 0, 0])
)


def likeness(*references: Tensor) -> Likeness:
    return Likeness(faces_of_crops(torch.stack(references)), Recognizer(), Detector())


def test_likeness_is_the_cosine_to_the_references_that_show_a_face() -> None:
    scores = likeness(RED, BLACK)(torch.stack([RED, YELLOW]))
    torch.testing.assert_close(scores, torch.tensor([1.0, 0.5**0.5]))


def test_a_picture_without_a_face_is_not_measured() -> None:
    assert likeness(RED)(torch.stack([RED, BLACK])).isnan().tolist() == [False, True]
    assert likeness(BLACK)(RED[None]).isnan().all()


def two_faces(first: Tensor, second: Tensor) -> Tensor:
    """(3, 64, 128): a large face of one colour on the left, a smaller one of another on the right."""
    picture = torch.zeros(3, 64, 128)
    picture[:, :, :64], picture[:, 16:48, 80:112] = first[:, :1, :1], second[:, :1, :1]
    return picture


def test_the_subject_is_the_face_that_was_chosen_and_not_the_largest() -> None:
    picture = Picture(two_faces(RED, YELLOW), name="two.png")
    found = [[face_from_box((4, 4, 60, 60)), face_from_box((80, 16, 112, 48))]]
    for number, colour, other in ((1, RED, YELLOW), (2, YELLOW, RED)):
        prepared = prepare_references([picture], 64, PrepareConfig(face=number), found)
        measure = Likeness(Faces(prepared), Recognizer(), Detector())
        scores = measure(torch.stack([colour, other]))
        torch.testing.assert_close(scores, torch.tensor([1.0, 0.5**0.5]))


def test_several_references_count_by_their_quality() -> None:
    faces = faces_of_crops(torch.stack([RED, YELLOW]))
    red, yellow = torch.tensor([1.0, 0, 0]), torch.tensor([1.0, 1, 0]) / 2**0.5
    for weights in ((1.0, 1.0), (1.0, 0.25), (0.0, 1.0)):
        object.__setattr__(faces.prepared, "weights", weights)
        subject = torch.nn.functional.normalize(weights[0] * red + weights[1] * yellow, dim=0)
        for kind, detector in ((Recognizer(), Detector()), (WholePictures(), None)):
            torch.testing.assert_close(Likeness(faces, kind, detector)(RED[None]), (red @ subject)[None])


def test_a_recogniser_of_whole_pictures_needs_no_detector() -> None:
    measure, by = open_likeness(faces_of_crops(RED[None]), WholePictures())
    assert measure is not None and by == "measured by glintr100.onnx on CPUExecutionProvider"
    torch.testing.assert_close(measure(torch.stack([RED, YELLOW])), torch.tensor([1.0, 0.5**0.5]))


def test_without_a_recogniser_the_reason_is_said() -> None:
    assert open_likeness(faces_of_crops(RED[None]), None) == (None, NOT_MEASURED)


@pytest.mark.parametrize(
    ("training", "warned"), [({"loss": ["GLINTR100"]}, True), ({"loss": ["judge"]}, False), ({}, False)]
)
def test_a_predictor_trained_with_the_recogniser_is_said(training: dict[str, object], warned: bool) -> None:
    assert bool(independence(Recognizer(), training)) == warned
