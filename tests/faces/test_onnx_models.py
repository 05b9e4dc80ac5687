from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from hyperdream_core.errors import FileFormatError, MissingDependencyError
from hyperdream_core.faces import onnx_models
from hyperdream_core.faces.onnx_models import find_model, open_model, require_model
from tests.tiny_onnx import write_recognizer


@pytest.mark.parametrize(
    "place", ["det_10g.onnx", "buffalo_l/det_10g.onnx", "buffalo_l/buffalo_l/det_10g.onnx", "models/a/a/det_10g.onnx"]
)
def test_packs_are_found_flat_and_nested_too_deep(tmp_path: Path, place: str) -> None:
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"")
    (file.parent / "w600k_r50.onnx").write_bytes(b"")
    assert find_model("detector", [tmp_path / "nowhere", tmp_path]) == file
    assert find_model("recognizer", [tmp_path]) == file.parent / "w600k_r50.onnx"
    assert find_model("detector", [file]) == file


def test_a_missing_model_names_files_sizes_folders_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError) as refused:
        require_model("detector", [tmp_path, tmp_path / "gone"])
    said = str(refused.value)
    for part in (
        "det_10g.onnx",
        "17 MB",
        str(tmp_path),
        f"{tmp_path / 'gone'} (no such folder)",
        "unpack",
    ):
        assert part in said


def test_what_is_no_onnx_model_is_refused_with_its_size(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "det_10g.onnx").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(FileFormatError, match=r"det_10g\.onnx: is not an ONNX model .*42 bytes\); download it again"):
        open_model(tmp_path / "det_10g.onnx")
    with pytest.raises(FileFormatError, match=r"gone\.onnx: cannot be opened"):
        open_model(tmp_path / "gone.onnx")


def test_a_batch_of_another_shape_is_refused(tmp_path: Path) -> None:
    model = open_model(write_recognizer(tmp_path / "w600k_r50.onnx"))
    assert (model.input_shape, model.output_shapes) == ((1, 3, 112, 112), ((1, 512),))
    with pytest.raises(FileFormatError, match=r"cannot run on a batch of shape \(1, 3, 9, 9\)"):
        model.run(np.zeros((1, 3, 9, 9), np.float32))


def test_a_model_that_puts_out_nan_is_refused_by_name(tmp_path: Path) -> None:
    model = open_model(write_recognizer(tmp_path / "w600k_r50.onnx"))
    with pytest.raises(FileFormatError, match=r"w600k_r50\.onnx: puts out numbers that are not finite \(output 1 of 1"):
        model.run(np.full((1, 3, 112, 112), np.nan, np.float32))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes among this system's files")
def test_a_pipe_in_a_models_place_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    os.mkfifo(tmp_path / "det_10g.onnx")
    with pytest.raises(FileFormatError, match=r"det_10g\.onnx: is a pipe or a device, but a file is expected"):
        open_model(tmp_path / "det_10g.onnx")


def test_without_onnxruntime_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_models, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"'onnxruntime' is not installed; add it with: pip install onnxr"):
        open_model(tmp_path / "det_10g.onnx")
