"""One job through three doors: the command line, ComfyUI beside our double, and the tab beside fakes of its host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from hyperdream_core.bundled import bundled_examples
from tests.cli.conftest import run
from tests.nodes.conftest import host, loaded_pack, miniature
from tests.tiny_onnx import write_detector, write_recognizer
from tests.webui.conftest import a1111, networks

__all__ = ["a1111", "host", "loaded_pack", "miniature", "networks", "run"]

SIDE = 256
"""px of one person's half of the photograph"""
_CELL = 16
"""px of the photograph that are one cell of the detector"""


def _half(channels: tuple[int, int, int], mark: int) -> np.ndarray:
    """A dim portrait (256, 256, 3) with a bright cell between its eyes, where the tiny detector sees a face."""
    with Image.open(bundled_examples() / "portrait.png") as image:
        pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE)), dtype=np.float32)
    dim = (pixels[..., list(channels)] * 0.6).astype(np.uint8)
    middle = SIDE // 2
    dim[middle : middle + _CELL, middle : middle + _CELL] = mark
    return dim


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    """Two photographs, a good and a blurred one, of the same two people; whoever stands left is seen more surely."""
    left, right = _half((0, 1, 2), 255), _half((2, 0, 1), 240)
    sharp = Image.fromarray(np.concatenate([left, right], axis=1))
    blurred = np.array(sharp.filter(ImageFilter.GaussianBlur(9)))
    middle = SIDE // 2
    for start, mark in ((middle, 255), (SIDE + middle, 240)):
        blurred[middle : middle + _CELL, start : start + _CELL] = mark
    files = [tmp_path / "good.png", tmp_path / "blurred.png"]
    for file, image in zip(files, (sharp, Image.fromarray(blurred)), strict=True):
        image.save(file)
    return files


@pytest.fixture
def face_models(host: Any, a1111: Any, tmp_path: Path) -> Path:
    """The folder where every door finds a tiny detector and recogniser."""
    # ComfyUI's and the tab's own folders for face models, under the folder that both fixtures share.
    folder = tmp_path / "models" / "insightface"
    write_detector(folder / "tiny" / "det_10g.onnx", side=SIDE, sees="bright")
    write_recognizer(folder / "tiny" / "w600k_r50.onnx")
    return folder
