"""Changes of a layer's scales: one of the kinds in the table of `adapted_linear`, for quantised layers and plain ones.

Live, the weight is not touched: diag(1 + a) W diag(1 + b) x is the layer's own product, its input and output scaled,

    y  = W ((1 + b) * x) + bias
    y' = y + a * (y - bias)

so that a sample at strength 0, with a = b = 0, is the base's bit for bit, each sample may have scales of its own, and a
host's quantised layers take part. On a layer that another change is live on, the difference to the layer's own output
is added to that one's, which costs the product once more. Merged, a quantised layer's integers stay and its scales are
multiplied, which costs nothing to draw with; a plain layer's weight is.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from ..errors import BaseMismatchError
from ..ops.scales import ScaleChange
from .low_rank_change import Forward, other_batch
from .quantized_linear import QuantizedConv2d, QuantizedLayer

_CONVOLUTIONS = (nn.Conv2d, QuantizedConv2d)


class Scales:
    """diag(1 + strength * a) W diag(1 + strength * b): the kind of `ScaleChange`."""

    def check(self, name: str, layer: nn.Module, change: ScaleChange) -> None:
        """Refuse a layer that is neither linear nor a convolution, or has other numbers of inputs and outputs.

        Raises:
            BaseMismatchError: names the sizes that are needed.
        """
        names = ("in_channels", "out_channels") if isinstance(layer, _CONVOLUTIONS) else ("in_features", "out_features")
        inputs, outputs = (getattr(layer, one, None) for one in names)
        found = [None if side is None else side.shape[-1] for side in (change.scale_in, change.scale_out)]
        if inputs is None or outputs is None or found[0] not in (None, inputs) or found[1] != outputs:
            raise BaseMismatchError(
                f"layer {name!r} of the base is a {type(layer).__name__} of {inputs} inputs and {outputs} outputs, but "
                f"the scales are of {'no' if found[0] is None else found[0]} inputs and {found[1]} outputs. They were "
                "trained on another base; load the one they name."
            )

    def forward(
        self, name: str, layer: nn.Module, change: ScaleChange, strength: float | Tensor, samples_each: int
    ) -> Forward:
        """The layer's forward with its scales changed."""
        before: Forward = layer.forward
        own: Forward = partial(type(layer).forward, layer)
        is_first, is_convolution = "forward" not in layer.__dict__, isinstance(layer, _CONVOLUTIONS)
        row = _times(change.scale_out, strength)
        column = None if change.scale_in is None else _times(change.scale_in, strength)

        def forward(x: Tensor) -> Tensor:
            a = _met(name, row, x, samples_each, is_convolution)
            y = own(x if column is None else x * (1 + _met(name, column, x, samples_each, is_convolution)))
            difference = a * (y - _bias(layer, y, is_convolution))
            return y + difference if is_first else before(x) + (y - own(x) + difference)

        return forward

    def merged(self, weight: Tensor, change: ScaleChange, strength: float) -> Tensor:
        """The weight (o, ...) with its rows and columns scaled, computed in float32 and in the weight's dtype."""
        wide = torch.promote_types(weight.dtype, torch.float32)
        inner = [1] * (weight.dim() - 2)
        total = weight.to(wide) * (1 + strength * change.scale_out.detach().to(weight.device, wide)).view(-1, 1, *inner)
        if change.scale_in is not None:
            total *= (1 + strength * change.scale_in.detach().to(weight.device, wide)).view(1, -1, *inner)
        return total.to(weight.dtype)

    def rescaled(self, layer: QuantizedLayer, change: ScaleChange, strength: float) -> dict[str, Tensor]:
        """The scales of a quantised layer with the change in them, by the names of the layer's buffers."""
        found = {"scale_out": layer.scale_out * (1 + strength * change.scale_out.detach().to(layer.scale_out))}
        if change.scale_in is not None:
            factor = 1 + strength * change.scale_in.detach().to(layer.scale_out)
            found["scale_in"] = factor if layer.scale_in is None else layer.scale_in * factor
        return found

    def size(self, change: ScaleChange) -> int:
        """Bytes of its tensors."""
        sides = [side for side in (change.scale_out, change.scale_in) if side is not None]
        return sum(side.numel() * side.element_size() for side in sides)


def _bias(layer: nn.Module, y: Tensor, is_convolution: bool) -> Tensor | float:
    """The layer's bias, shaped to be taken off its output."""
    bias = layer.bias
    if not isinstance(bias, Tensor):
        return 0.0
    return bias.to(y)[:, None, None] if is_convolution else bias.to(y)


def _times(side: Tensor, strength: float | Tensor) -> Tensor:
    """strength * side: (d,), or (b, d) if either is per sample."""
    if isinstance(strength, Tensor):
        strength = strength.to(side)
        return side * strength[:, None] if strength.dim() else side * strength
    return side * strength


def _met(name: str, side: Tensor, x: Tensor, samples_each: int, is_convolution: bool) -> Tensor:
    """One side's change (d,) or (b, d), shaped to meet the channels or the features of a batch."""
    side = side.to(x)
    if side.dim() == 1:
        return side[:, None, None] if is_convolution else side
    if x.dim() < 2 or x.shape[0] != len(side) * samples_each:
        raise other_batch(name, x, len(side) * samples_each)
    side = side.repeat_interleave(samples_each, 0)
    # A plain reshape, as everywhere that runs for every layer at every step.
    return side[:, :, None, None] if is_convolution else side.view(len(side), *[1] * (x.dim() - 2), -1)
