"""Another strength for each chunk of a batch: adapters on linear layers and convolutions while the UNet is called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ...models.adapted_linear import live
from .guided_step import Part, strengths_by_adapter


@contextmanager
def live_parts(unet: nn.Module, parts: Sequence[Part], samples: int, device: torch.device) -> Iterator[None]:
    """Run each part's chunk of the batch with its adapter at its strength.

    Args:
        unet: whose layers the pairs name.
        parts: of each chunk, in the order of the batch.
        samples: of a chunk.
        device: of the batch.
    """
    with ExitStack() as stack:
        for pairs, each in strengths_by_adapter(parts):
            strength: float | Tensor = each[0]
            if len(set(each)) > 1:
                strength = torch.tensor(each, device=device).repeat_interleave(samples)
            stack.enter_context(live(unet, pairs, strength))
        yield
