from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from hyperdream_core.errors import FileFormatError
from hyperdream_core.faces.face import Face
from hyperdream_core.faces.insightface_detector import InsightfaceDetector
from tests.tiny_onnx import BOX, POINTS, SIDE, write_detector


@pytest.fixture
def detector(tmp_path: Path) -> InsightfaceDetector:
    write_detector(tmp_path / "antelopev2" / "antelopev2" / "scrfd_10g_bnkps.onnx")
    return InsightfaceDetector([tmp_path])


def picture(row: int, column: int, height: int = 128, width: int = 128) -> torch.Tensor:
    """Grey, with one red cell of the 8x8 that the tiny detector sees."""
    cell = max(height, width) // 8
    pixels = torch.full((3, height, width), 0.5)
    pixels[:, row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = torch.tensor([1.0, 0, 0])[
        :, None, None
    ]
    return pixels


@pytest.mark.parametrize(("height", "width"), [(128, 128), (128, 96), (64, 128)])
def test_boxes_and_landmarks_are_those_of_the_anchor(detector: InsightfaceDetector, height: int, width: int) -> None:
    (face,) = [face for face in detector.find(picture(3, 4, height, width), 0.5).faces if face.score > 0.5]
    # Stride 8 of 64 px is 16 of these 128.
    x, y = 4 * 16, 3 * 16
    expected = (x - 16 * BOX[0], y - 16 * BOX[1], x + 16 * BOX[2], y + 16 * BOX[3])
    assert face.box == pytest.approx(expected)
    assert face.landmarks is not None and face.is_measured
    torch.testing.assert_close(face.landmarks, torch.tensor([x, y]) + 16 * torch.tensor(POINTS))
    # 0.5 * (255 - 0) / 128 for pure red, less what the reduction takes from its edges.
    assert 0.9 < face.score < 0.997


def test_a_second_anchor_of_the_same_face_is_no_second_face(detector: InsightfaceDetector) -> None:
    faces = detector.find(picture(3, 4), 0.3).faces
    assert len(faces) == 1


def test_two_faces_are_two(detector: InsightfaceDetector) -> None:
    both = torch.where(picture(1, 1) != 0.5, picture(1, 1), picture(6, 6))
    centres = sorted(face.center for face in detector.find(both, 0.5).faces)
    assert sum(centres, ()) == pytest.approx((16.0, 12.0, 96.0, 92.0))


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_points_of_a_turned_picture_come_back_to_where_they_are(detector: InsightfaceDetector, turn: int) -> None:
    one = picture(2, 5, 128, 96)
    upright = detector._search(torch.rot90(one, turn, (1, 2)), 0, 0.0)[0]
    back = detector._search(one, turn, 0.0)[0]
    assert upright.landmarks is not None and back.landmarks is not None
    # Turned by hand: a quarter counter-clockwise takes (x, y) to (y, width - x).
    points = back.landmarks
    for quarter in range(turn):
        points = torch.stack([points[:, 1], (96 if quarter % 2 == 0 else 128) - points[:, 0]], dim=1)
    torch.testing.assert_close(points, upright.landmarks)
    padded = detector._search(one, 0, 0.5)
    assert len(padded) == 1 and padded[0].score > 0.2


def test_a_group_on_its_head_is_not_taken_for_its_one_face_that_answers_upright(
    detector: InsightfaceDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {0: (0.55,), 2: (0.9, 0.8, 0.6)}

    def search(self: InsightfaceDetector, picture: torch.Tensor, turn: int, pad: float) -> list[Face]:
        return [
            Face((100.0 * place, 0.0, 100.0 * place + 50, 50.0), score)
            for place, score in enumerate(() if pad == 0.5 else scores.get(turn, ()))
        ]

    monkeypatch.setattr(InsightfaceDetector, "_search", search)
    search_for = detector.find(torch.zeros(3, 100, 400), 0.5)
    assert [face.score for face in search_for.faces] == [0.9, 0.8, 0.6]
    assert search_for.looked == "at 64 px, quarter turns"


def test_nothing_red_is_no_face_and_all_ways_are_told(detector: InsightfaceDetector) -> None:
    search = detector.find(torch.full((3, 50, 70), 0.3), 0.5)
    assert search.faces == () and search.looked == "at 64 px, on a padded copy, quarter turns"


def test_the_file_and_its_provider_are_named(detector: InsightfaceDetector) -> None:
    assert detector.about.startswith("insightface's scrfd_10g_bnkps.onnx on ")
    assert detector.about.endswith("ExecutionProvider")


@pytest.mark.parametrize(
    ("outputs", "side", "said"), [(6, SIDE, "has 6 outputs, but .* has 9; use det_10g"), (9, 40, "divides by 32")]
)
def test_another_network_is_refused(tmp_path: Path, outputs: int, side: int, said: str) -> None:
    write_detector(tmp_path / "det_10g.onnx", outputs, side)
    with pytest.raises(FileFormatError, match=rf"det_10g\.onnx: .*{said}"):
        InsightfaceDetector([tmp_path])


@pytest.mark.skipif(find_spec("insightface") is None or find_spec("cv2") is None, reason="insightface is not installed")
@pytest.mark.filterwarnings("ignore")
def test_the_packages_own_code_reads_the_same_from_the_outputs(tmp_path: Path, detector: InsightfaceDetector) -> None:
    from insightface.model_zoo.scrfd import SCRFD

    path = tmp_path / "antelopev2" / "antelopev2" / "scrfd_10g_bnkps.onnx"
    theirs = SCRFD(str(path))
    theirs.prepare(-1, input_size=(SIDE, SIDE), det_thresh=0.5)
    pixels = picture(3, 4)
    boxes, points = theirs.detect((pixels.permute(1, 2, 0).numpy()[:, :, ::-1] * 255).astype(np.uint8))
    (ours,) = detector.find(pixels, 0.5).faces
    assert ours.box == pytest.approx(boxes[0, :4].tolist()) and ours.score == pytest.approx(boxes[0, 4], abs=0.07)
    assert ours.landmarks is not None
    np.testing.assert_allclose(ours.landmarks.numpy(), points[0], rtol=1e-5)
