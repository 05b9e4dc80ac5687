from __future__ import annotations

from pathlib import Path

import pytest

from hyperdream_core.errors import ConfigError, FileFormatError
from hyperdream_core.faces import detectors
from hyperdream_core.faces.detectors import open_detector
from tests.tiny_onnx import write_detector


@pytest.fixture(autouse=True)
def no_packs_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detectors, "usual_folders", lambda: (tmp_path / "home",))


def test_auto_takes_insightface_where_a_pack_lies(tmp_path: Path) -> None:
    write_detector(tmp_path / "home" / "buffalo_l" / "det_10g.onnx")
    detector, notes = open_detector("auto")
    assert detector.name == "insightface" and notes == ()


def test_auto_takes_the_cascade_where_nothing_else_is(tmp_path: Path) -> None:
    detector, notes = open_detector("auto", [tmp_path / "gone"])
    assert detector.name == "cascade" and notes == ()


def test_auto_passes_over_a_damaged_pack_and_says_so(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "det_10g.onnx").write_bytes(b"no model")
    detector, notes = open_detector("auto", [tmp_path])
    assert detector.name == "cascade" and "because det_10g.onnx: is not an ONNX model" in notes[0]
    with pytest.raises(FileFormatError, match="is not an ONNX model"):
        open_detector("insightface", [tmp_path])


def test_what_was_asked_for_by_name_and_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="holds no face detector: expected"):
        open_detector("insightface", [tmp_path])
    with pytest.raises(ConfigError, match="unknown face detector 'dlib'; known: auto, insightface, cascade, already"):
        open_detector("dlib")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["cascade", "already-cropped"])
def test_detectors_go_by_their_names(name: str) -> None:
    assert open_detector(name)[0].name == name  # type: ignore[arg-type]
