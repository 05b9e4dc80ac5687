from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hyperdream_core.errors import FileFormatError
from hyperdream_core.faces.face import Face, face_from_box
from hyperdream_core.faces.recognizer import OnnxRecognizer, aligned_square
from tests.tiny_onnx import write_detector, write_recognizer

FACE = face_from_box((20, 20, 80, 80))


@pytest.mark.parametrize(("width", "threshold"), [(512, 0.28), (128, 0.363)])
def test_embeddings_have_unit_length_and_tell_pictures_apart(tmp_path: Path, width: int, threshold: float) -> None:
    recognizer = OnnxRecognizer([write_recognizer(tmp_path / "sface.onnx", width)])
    one, other = torch.rand(2, 3, 100, 100, generator=torch.Generator().manual_seed(0)).unbind(0)
    first, again, second = (recognizer.embed(picture, FACE) for picture in (one, one.clone(), 1 - one * other))
    assert first.shape == (width,) and float(first.norm()) == pytest.approx(1)
    assert float(first @ again) == pytest.approx(1) and float(first @ second) < 0.999
    assert recognizer.same_person == threshold and recognizer.about.startswith("sface.onnx on ")


def test_arcface_takes_minus_1_to_1_and_sface_0_to_255(tmp_path: Path) -> None:
    black, grey, white = (torch.full((3, 100, 100), value) for value in (0.0, 0.5, 1.0))
    arcface = OnnxRecognizer([write_recognizer(tmp_path / "arcface.onnx", 512)])
    sface = OnnxRecognizer([write_recognizer(tmp_path / "sface.onnx", 128)])
    # The tiny network is linear: black is minus white to one of them, and grey half of white to the other.
    torch.testing.assert_close(arcface.embed(black, FACE), -arcface.embed(white, FACE))
    torch.testing.assert_close(sface.embed(grey, FACE), sface.embed(white, FACE))


def test_a_network_that_is_no_recogniser_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="but a recogniser turns 112x112 px into 512 numbers"):
        OnnxRecognizer([write_recognizer(tmp_path / "w600k.onnx", 7)])
    with pytest.raises(FileFormatError, match="but a recogniser turns"):
        OnnxRecognizer([write_detector(tmp_path / "det_10g.onnx")])
    with pytest.raises(FileFormatError, match="holds no face recognizer: expected w600k_r50"):
        OnnxRecognizer([tmp_path / "nowhere"])


def test_a_face_without_landmarks_is_its_box() -> None:
    picture = torch.zeros(3, 60, 60)
    picture[:, 10:30, 20:40] = 1.0
    assert (aligned_square(picture, Face((20.0, 10.0, 40.0, 30.0), 1.0), 20) == 1).all()
