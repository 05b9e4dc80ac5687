from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyperdream_core.faces.face import Face, Search, face_from_box
from hyperdream_core.faces.likeness import LikenessJudge, independence


class Detector:
    name, about = "tests", "a detector of tests"

    def find(self, picture: Tensor, min_score: float) -> Search:
        """A face in every picture that is not black; a smaller and a weak one besides."""
        if not picture.any():
            return Search((), "")
        return Search((face_from_box((0, 0, 5, 5)), face_from_box((0, 0, 9, 9), 0.4), face_from_box((0, 0, 8, 8))), "")


class Recognizer:
    about, same_person, needs_landmarks = "glintr100.onnx on CPUExecutionProvider", 0.5, True

    def embed(self, picture: Tensor, face: Face) -> Tensor:
        assert face.side == 8
        return torch.nn.functional.normalize(picture[:, 0, 0], dim=0)


RED, YELLOW, BLACK = (
    torch.tensor(colour)[:, None, None].expand(3, 16, 16) for colour in ([1.0, 0, 0], [1.0, 1, 0], [0.0, 0, 0])
)
JUDGE = LikenessJudge(Recognizer(), Detector())


def test_likeness_is_the_cosine_to_the_references_that_show_a_face() -> None:
    scores = JUDGE(torch.stack([RED, YELLOW]), torch.stack([RED, BLACK]))
    torch.testing.assert_close(scores, torch.tensor([1.0, 0.5**0.5]))


def test_a_picture_without_a_face_is_not_measured() -> None:
    assert JUDGE(torch.stack([RED, BLACK]), RED[None]).isnan().tolist() == [False, True]
    assert JUDGE(RED[None], BLACK[None]).isnan().all()


@pytest.mark.parametrize(
    ("training", "warned"), [({"loss": ["GLINTR100"]}, True), ({"loss": ["judge"]}, False), ({}, False)]
)
def test_a_predictor_trained_with_the_recogniser_is_said(training: dict[str, object], warned: bool) -> None:
    assert bool(independence(Recognizer(), training)) == warned
