"""The templates' portrait: there after a start, and never in the way of the user's own."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.nodes.pack import ROOT, load_pack_module

example_picture = load_pack_module("nodes.making.example_picture")


def test_the_portrait_is_put_where_load_image_looks(tmp_path: Path) -> None:
    example_picture.offer_example_picture(tmp_path)
    copied = tmp_path / example_picture.EXAMPLE_PICTURE
    assert copied.read_bytes() == (ROOT / "examples" / "portrait.png").read_bytes()


def test_what_is_there_already_stays(tmp_path: Path) -> None:
    (tmp_path / example_picture.EXAMPLE_PICTURE).write_bytes(b"the user's own")
    example_picture.offer_example_picture(tmp_path)
    assert (tmp_path / example_picture.EXAMPLE_PICTURE).read_bytes() == b"the user's own"


def test_a_folder_that_cannot_be_written_is_a_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        example_picture.offer_example_picture(tmp_path / "missing")
    assert "portrait could not be put into" in caplog.text
