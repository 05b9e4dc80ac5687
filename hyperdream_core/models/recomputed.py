"""Activations that are computed twice rather than kept: a UNet trains in a fraction of the memory, a third slower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .one_thread import alone_with

_BLOCKS = ("ResBlock", "ResnetBlock2D", "BasicTransformerBlock")
"""Classes, of ldm, ComfyUI and diffusers, whose insides are computed again for the gradients."""


@contextmanager
def recomputed(unet: nn.Module) -> Iterator[None]:
    """Keep the inputs of the UNet's blocks only, and compute their insides again for the gradients.

    The numbers are the same, in a host's own blocks up to rounding. Call backward() inside the context; other threads
    wait for the UNet meanwhile.
    """
    with ExitStack() as stack:
        stack.enter_context(alone_with([unet]))
        for block in unet.modules():
            if type(block).__name__ in _BLOCKS:
                previous = block.__dict__.get("forward")
                is_careful = type(block).__module__.startswith("diffusers.")
                block.__dict__["forward"] = _twice(block.forward if is_careful else _on_a_copy(block.forward))
                stack.callback(_put_back, block, previous)
        yield


def _twice(forward: Any) -> Any:
    def computed_twice(*arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        return checkpoint(forward, *arguments, use_reentrant=False, **named)

    return computed_twice


def _on_a_copy(forward: Any) -> Any:
    """Blocks of some hosts add to their input in place, and the second time would start from the sum.

    A copy changes the order in which gradients are summed, and so their last bits.
    """

    def on_a_copy(*arguments: Any, **named: Any) -> Any:
        first = (one.clone() if isinstance(one, Tensor) else one for one in arguments[:1])
        return forward(*first, *arguments[1:], **named)

    return on_a_copy


def _put_back(block: nn.Module, previous: Any) -> None:
    if previous is None:
        del block.__dict__["forward"]
    else:
        block.__dict__["forward"] = previous
