from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import ImageFont

from hyperdream_core.pictures.grid import EMPTY, PAPER, _wrap, label_font, labelled_grid

RED = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1).expand(3, 16, 16)
BLUE = torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1).expand(3, 16, 16)


def count(sheet: np.ndarray, colour: tuple[int, ...]) -> int:
    return int((sheet == colour).all(axis=-1).sum())


def test_pictures_keep_their_order_and_colours() -> None:
    sheet = np.asarray(labelled_grid([[RED, BLUE], [BLUE, RED]], ["one", "two"], cell=64))
    red, blue = ((sheet == colour).all(axis=-1) for colour in ((255, 0, 0), (0, 0, 255)))
    # Each picture fills its cell but for the rounded corners.
    assert 2 * 64 * 64 * 0.99 < red.sum() == blue.sum() < 2 * 64 * 64
    (top, bottom), (left, right) = ((used[0], used[-1]) for used in (np.where(red.any(axis))[0] for axis in (1, 0)))
    assert red[top + 32, left + 32] and red[bottom - 32, right - 32]
    assert blue[top + 32, right - 32] and blue[bottom - 32, left + 32]


def test_a_missing_picture_leaves_paper_and_a_narrow_one_is_padded() -> None:
    sheet = np.asarray(labelled_grid([[None]], [""], cell=64))
    assert (sheet == PAPER).all()
    sheet = np.asarray(labelled_grid([[RED[:, :8]]], ["half"], cell=64))
    assert abs(count(sheet, (255, 0, 0)) - 64 * 32) < 64
    assert abs(count(sheet, EMPTY) - 64 * 32) < 64


def test_labels_need_room_only_where_they_stand() -> None:
    plain = labelled_grid([[RED]], [""], cell=64)
    assert labelled_grid([[RED]], ["name"], cell=64).height > plain.height
    assert labelled_grid([[RED]], [""], ["name"], cell=64).width > plain.width
    assert labelled_grid([[RED]], [""], title="Title", cell=64).height > plain.height
    assert labelled_grid([[RED]], [""], caption="caption", cell=64).height > plain.height


def test_nothing_is_written_into_the_margins() -> None:
    texts = {
        "title": "A title much longer than the sheet is wide",
        "caption": "and a caption that is longer still " * 3,
    }
    sheet = labelled_grid([[RED, None]], ["a long column label", "b"], ["a rather long row label"], cell=64, **texts)
    pixels = np.asarray(sheet)
    margin = 8
    frame = np.ones(pixels.shape[:2], bool)
    frame[margin:-margin, margin:-margin] = False
    assert (pixels[frame] == PAPER).all()


def test_long_labels_are_wrapped_at_spaces_and_inside_words_where_there_is_none() -> None:
    font = label_font(12)
    lines = _wrap("a [V] face, smiling, wearing a hat", font, 80)
    assert " ".join(lines) == "a [V] face, smiling, wearing a hat" and len(lines) > 1
    assert all(font.getlength(line) <= 80 for line in lines)
    assert "".join(_wrap("m" * 50, font, 80)) == "m" * 50
    assert all(font.getlength(line) <= 80 for line in _wrap("m" * 50, font, 80))
    assert _wrap("first\nsecond", font, 500) == ["first", "second"]


def test_an_old_pillow_without_a_scalable_font_still_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    bitmap = getattr(ImageFont, "load_default_imagefont", ImageFont.load_default)()

    def load_default() -> object:
        return bitmap

    monkeypatch.setattr(ImageFont, "load_default", load_default)
    sheet = np.asarray(labelled_grid([[RED]], ["column"], ["行 row"], cell=64))
    assert count(sheet, (255, 0, 0)) > 64 * 64 * 0.99


def test_rows_and_labels_must_match() -> None:
    with pytest.raises(ValueError, match=r"rows have \[1, 2\] pictures, expected 2 in each"):
        labelled_grid([[RED], [RED, RED]], ["one", "two"])
    with pytest.raises(ValueError, match="1 row labels for 2 rows"):
        labelled_grid([[RED], [RED]], ["one"], ["only"])
