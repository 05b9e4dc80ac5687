"""Another strength for each chunk of a batch: adapters on linear layers and convolutions while the UNet is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import BaseMismatchError
from ...models.adapted_linear import live
from ...ops.lowrank import LoraPair
from .guided_step import Part


@contextmanager
def live_parts(unet: nn.Module, parts: Sequence[Part], samples: int, device: torch.device) -> Iterator[None]:
    """Run each part's chunk of the batch with its adapter at its strength.

    Args:
        unet: whose layers the pairs name.
        parts: of each chunk, in the order of the batch.
        samples: of a chunk.
        device: of the batch.
    """
    adapters = {id(part.pairs): part.pairs for part in parts if part.pairs and part.strength != 0}
    with ExitStack() as stack:
        for number, pairs in adapters.items():
            each = [part.strength if id(part.pairs) == number else 0.0 for part in parts]
            strength: float | Tensor = each[0]
            if len(set(each)) > 1:
                strength = torch.tensor(each, device=device).repeat_interleave(samples)
            stack.enter_context(live_layers(unet, pairs, strength))
        yield


@contextmanager
def live_layers(unet: nn.Module, pairs: Mapping[str, LoraPair], strength: float | Tensor) -> Iterator[None]:
    """The core's `live` for a UNet's linear layers and convolutions.

    Args:
        unet: whose layers the pairs name.
        pairs: name of the layer -> its factors; a convolution's inputs are channels times its kernel.
        strength: one number, or one per sample (b,).

    Raises:
        BaseMismatchError: a layer is missing, or its sizes are not the pair's.
    """
    modules = dict(unet.named_modules())
    convolutions = {name: modules[name] for name in pairs if isinstance(modules.get(name), nn.Conv2d)}
    linear = {name: pair for name, pair in pairs.items() if name not in convolutions}
    with ExitStack() as stack:
        for name, layer in convolutions.items():
            stack.callback(layer.register_forward_hook(_addition(name, layer, pairs[name], strength)).remove)
        stack.enter_context(live(unet, linear, strength))
        yield


def _addition(name: str, layer: Any, pair: LoraPair, strength: float | Tensor) -> Any:
    """A forward hook that adds strength * up(down(x)); the first factor has the layer's own kernel and stride."""
    inputs = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
    if (pair.down.shape[-1], pair.up.shape[-2]) != (inputs, layer.out_channels):
        raise BaseMismatchError(
            f"layer {name!r} has down {tuple(pair.down.shape)} and up {tuple(pair.up.shape)}, but the base needs "
            f"(r, {inputs}) and ({layer.out_channels}, r). The adapter was made for another base; load the one it "
            "names."
        )
    kernel = pair.down.reshape(pair.rank, layer.in_channels, *layer.kernel_size)
    factor = strength[:, None, None, None] if isinstance(strength, Tensor) else strength

    def add(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = arguments[0]
        hidden = nn.functional.conv2d(x, kernel.to(x), None, layer.stride, layer.padding, layer.dilation)
        scale = factor.to(output) if isinstance(factor, Tensor) else factor
        return output + scale * nn.functional.conv2d(hidden, pair.up.to(x)[:, :, None, None])

    return add
