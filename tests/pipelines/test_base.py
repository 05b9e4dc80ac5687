from __future__ import annotations

import pytest
import torch

from hyperdream_core.pipelines.base import Conditioning, frozen
from hyperdream_core.pipelines.diffusers.diffusers_base import DiffusersBase


def numbered(rows: int, shift: float = 0.0) -> Conditioning:
    return Conditioning(torch.arange(rows)[:, None, None] + shift, torch.arange(rows)[:, None] + shift)


def test_rows_are_repeated_and_interleaved_side_by_side() -> None:
    assert numbered(2).repeat_each(2).tokens.flatten().tolist() == [0, 0, 1, 1]
    both = Conditioning.interleave(numbered(2), numbered(2, 0.5))
    assert both.tokens.flatten().tolist() == both.pooled.flatten().tolist() == [0, 0.5, 1, 1.5]  # type: ignore[union-attr]
    assert len(both) == 4 and both[1:3].tokens.flatten().tolist() == [0.5, 1]


def test_without_a_pooled_part_there_is_none() -> None:
    plain = Conditioning(torch.zeros(2, 3, 4))
    assert (
        plain.pooled is plain.repeat_each(3).pooled is Conditioning.interleave(plain, plain).pooled is plain[:1].pooled
    )


def test_freezing_ends_with_what_was_before_even_after_an_error(base: DiffusersBase) -> None:
    layer = base.unet.conv_in.train(True).requires_grad_(True)
    try:
        with pytest.raises(KeyboardInterrupt), frozen(base):
            assert not layer.training and not layer.weight.requires_grad
            raise KeyboardInterrupt
        assert layer.training and layer.weight.requires_grad and not base.unet.conv_out.weight.requires_grad
    finally:
        layer.train(False).requires_grad_(False)


def test_weights_that_were_loaded_in_inference_mode_are_let_go_again(base: DiffusersBase) -> None:
    # So ComfyUI's checkpoint loader leaves them, in front of everything that polishes or draws.
    with torch.inference_mode():
        loaded = torch.nn.Parameter(torch.zeros(2))
    base.unet.register_parameter("loaded_by_a_host", loaded)
    try:
        with frozen(base):
            assert not loaded.requires_grad
        assert loaded.requires_grad
    finally:
        del base.unet.loaded_by_a_host
