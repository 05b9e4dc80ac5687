from __future__ import annotations

from pathlib import Path

import pytest

from hyperdream_core import bundled
from hyperdream_core.errors import FileFormatError


@pytest.fixture
def beside_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(bundled, "_BESIDE_CORE", tmp_path)
    return tmp_path


def test_a_checkout_has_its_folders_at_the_top(beside_core: Path) -> None:
    (beside_core / "weights").mkdir()
    (beside_core / "examples").mkdir()
    assert bundled.bundled_weights() == beside_core / "weights"
    assert bundled.bundled_examples() == beside_core / "examples"


def test_an_installed_copy_does_not_take_a_strangers_weights(beside_core: Path) -> None:
    (beside_core / "weights").mkdir()
    (beside_core / "hyperdream_weights").mkdir()
    assert bundled.bundled_weights() == beside_core / "hyperdream_weights"


def test_a_copy_without_weights_says_so(beside_core: Path) -> None:
    with pytest.raises(FileFormatError, match="came without its weights; install it again"):
        bundled.bundled_weights()
