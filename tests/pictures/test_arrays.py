from __future__ import annotations

import numpy as np
import pytest
import torch

from hyperdream_core.errors import ReferenceImageError
from hyperdream_core.pictures.arrays import picture_from_array

SHAPE = (33, 40)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.full((*SHAPE, 3), 51, np.uint8), 0.2),
        (np.full(SHAPE, 0.2, np.float64), 0.2),
        (np.full((*SHAPE, 1), 13107, np.uint16), 0.2),
        (np.full((*SHAPE, 3), 13107, ">u2"), 0.2),
        (np.full(SHAPE, True), 1.0),
        (torch.full((*SHAPE, 3), 0.2, dtype=torch.float16), 0.2),
        (np.full((*SHAPE, 2), (0.5, 0.4)), 0.5 * 0.4 + 0.6),
    ],
)
def test_every_layout_and_depth_means_the_same(array: np.ndarray | torch.Tensor, expected: float) -> None:
    picture = picture_from_array(array, "photo")
    shows_through = array.ndim == 3 and array.shape[-1] in (2, 4) and expected == 0.8
    assert picture.name == "photo" and len(picture.notes) == shows_through
    torch.testing.assert_close(picture.pixels, torch.full((3, *SHAPE), expected), rtol=0, atol=2e-4)


def test_alpha_shows_the_chosen_background() -> None:
    rgba = torch.zeros(*SHAPE, 4)
    pixels = picture_from_array(rgba, "photo", background=(255, 0, 51)).pixels
    torch.testing.assert_close(pixels[:, 0, 0], torch.tensor([1.0, 0.0, 0.2]))


def test_highlights_are_clipped_with_a_note_and_other_scales_refused() -> None:
    picture = picture_from_array(torch.full((*SHAPE, 3), 3.5), "photo")
    assert picture.pixels.max() == 1 and "from 3.50 to 3.50 are clipped" in picture.notes[0]
    for value in (200.0, float("nan"), float("inf"), -200.0):
        with pytest.raises(ReferenceImageError, match=r"photo: has values from .* expected 0 to 1"):
            picture_from_array(torch.full((*SHAPE, 3), value), "photo")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((2, *SHAPE, 3)), r"has shape \(2, 33, 40, 3\), expected \(h, w\)"),
        (np.zeros((*SHAPE, 5)), "expected"),
        (np.zeros((20, 40, 3)), "is 40x20 px, expected at least 32 px"),
        (np.zeros((*SHAPE, 3), np.int64), "numbers of type torch.int64"),
    ],
)
def test_what_is_no_picture_is_refused(array: np.ndarray, said: str) -> None:
    with pytest.raises(ReferenceImageError, match=said):
        picture_from_array(array)


def test_the_array_is_left_alone() -> None:
    values = torch.full((*SHAPE, 3), 2.0)
    picture_from_array(values)
    assert (values == 2.0).all()
