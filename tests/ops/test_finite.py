from __future__ import annotations

import pytest
import torch

from hyperdream_core.errors import OutputError
from hyperdream_core.ops.finite import is_finite, sound


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_none_is_found_among_many(wrong: float) -> None:
    tensor = torch.zeros(3, 100)
    assert is_finite(tensor, None)
    tensor[1, 7] = wrong
    assert not is_finite(torch.zeros(1), tensor)
    with pytest.raises(OutputError, match="the picture holds 1 of 300 numbers that are not finite; get another"):
        sound(tensor, "the picture", "get another")


def test_what_is_sound_passes_unchanged_and_another_shape_does_not() -> None:
    tensor = torch.rand(2, 3, 4)
    assert sound(tensor, "it", "", (2, None, 4)) is tensor
    for shape in [(2, 3), (2, 3, 5), (None, None, None, None)]:
        with pytest.raises(OutputError, match=r"it came out with the shape \(2, 3, 4\), expected \("):
            sound(tensor, "it", "do something", shape)
