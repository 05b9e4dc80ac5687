"""Low-rank pairs on linear layers and convolutions: one of the kinds in the table of `adapted_linear`.

A worked example, of a linear layer from 3 features to 2 at rank 1, strength 0.5, for the input x = (1, 2, 3):

    W = [[1, 0, 0],     down = [[1, 1, 0]]     up = [[2],        W x = (1, 2)
         [0, 1, 0]]                                  [0]]

    hidden = down x = 1 + 2 = 3          the input in the pair's r directions: (tokens, r)
    output = W x + 0.5 * up hidden = (1, 2) + 0.5 * (6, 0) = (4, 2)

The strength is multiplied into `up` once, when the context opens, so that a call costs two thin products and no more.
With b adapters at a time, down (b, r, i) and up (b, o, r), the tokens are sorted by sample first, (b, n, i), and the
same products are batched ones. A convolution is a linear layer on patches: down is a convolution with the layer's own
kernel, stride and padding, up one with a kernel of 1 x 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import BaseMismatchError, ConfigError
from ..ops.lowrank import LoraPair
from .quantized_linear import QuantizedConv2d

Forward = Callable[[Tensor], Tensor]


class LowRank:
    """strength * up @ down: the kind of `LoraPair`."""

    def check(self, name: str, layer: nn.Module, change: LoraPair) -> None:
        """Refuse a layer that is neither linear nor a convolution, or has other sizes than the pair.

        Raises:
            BaseMismatchError: names the sizes that are needed.
        """
        sizes = _sizes(layer)
        if sizes is None:
            raise BaseMismatchError(
                f"layer {name!r} of the base is a {type(layer).__name__}, not a linear layer or a convolution. The "
                "adapter was made for another base; load the one it names."
            )
        down, up = change.down, change.up
        if (down.shape[-1], up.shape[-2]) != sizes or up.shape[-1] != change.rank:
            raise BaseMismatchError(
                f"layer {name!r} has down {tuple(down.shape)} and up {tuple(up.shape)}, but the base needs "
                f"(..., r, {sizes[0]}) and (..., {sizes[1]}, r). The adapter was made for another base; load the one "
                "it names."
            )

    def forward(
        self, name: str, layer: nn.Module, change: LoraPair, strength: float | Tensor, samples_each: int
    ) -> Forward:
        """The layer's forward with the change added."""
        if isinstance(layer, (nn.Conv2d, QuantizedConv2d)):
            return _convolution_forward(name, layer, change, strength, samples_each)
        return _linear_forward(name, layer, change, strength, samples_each)

    def merged(self, weight: Tensor, change: LoraPair, strength: float) -> Tensor:
        """The weight (o, ...) with the change added, summed in float32 and in the weight's dtype."""
        wide = torch.promote_types(weight.dtype, torch.float32)
        up, down = (factor.detach().to(weight.device, wide) for factor in (change.up, change.down))
        total = torch.addmm(weight.flatten(1).to(wide), up, down, alpha=strength)
        return total.to(weight.dtype).view(weight.shape)

    def size(self, change: LoraPair) -> int:
        """Bytes of its tensors."""
        return sum(factor.numel() * factor.element_size() for factor in (change.down, change.up))


def _sizes(layer: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of the layer as a matrix."""
    if isinstance(layer, (nn.Conv2d, QuantizedConv2d)):
        return layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1], layer.out_channels
    # Quantised layers, ours and the hosts', are of other classes, and have these two as well.
    inputs, outputs = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
    return None if inputs is None or outputs is None else (inputs, outputs)


def _linear_forward(
    name: str, layer: nn.Module, pair: LoraPair, strength: float | Tensor, samples_each: int
) -> Forward:
    base_forward: Forward = layer.forward
    # Nested contexts have put a forward of their own into the layer; quantised layers are of other classes.
    is_plain = type(layer) is nn.Linear and "forward" not in layer.__dict__
    down, up = _folded(layer, pair, strength)
    samples = up.shape[:-2]
    add_product = torch.baddbmm if samples else torch.addmm

    def forward(x: Tensor) -> Tensor:
        if samples and (x.dim() < 2 or x.shape[0] != samples[0] * samples_each):
            raise other_batch(name, x, samples[0] * samples_each)
        if is_plain and not layer.weight.requires_grad:
            result: Tensor = _AdaptedLinear.apply(x, layer.weight, layer.bias, down.to(x.dtype), up.to(x.dtype))
            return result
        base = base_forward(x)
        # On the input's device: a host short of memory keeps weights elsewhere and brings them over in the call.
        hidden = torch.matmul(_tokens(x, samples), down.to(x).mT)
        return add_product(_tokens(base, samples), hidden, up.to(x).mT).reshape(base.shape)

    return forward


def _convolution_forward(
    name: str, layer: nn.Conv2d | QuantizedConv2d, pair: LoraPair, strength: float | Tensor, samples_each: int
) -> Forward:
    if pair.samples is not None:
        raise ConfigError(
            f"layer {name!r} is a convolution and has per-sample factors, down {tuple(pair.down.shape)}, but one pair "
            "for all samples is expected there. Draw the samples one by one."
        )
    base_forward: Forward = layer.forward
    padding: Any = layer.padding
    kernel = pair.down.reshape(pair.rank, layer.in_channels, *layer.kernel_size)
    factor = strength
    if isinstance(strength, Tensor) and strength.dim():
        factor = strength.repeat_interleave(samples_each)[:, None, None, None]

    def forward(x: Tensor) -> Tensor:
        if isinstance(factor, Tensor) and factor.dim() and x.shape[0] != factor.shape[0]:
            raise other_batch(name, x, factor.shape[0])
        hidden = nn.functional.conv2d(x, kernel.to(x), None, layer.stride, padding, layer.dilation)
        scale = factor.to(x) if isinstance(factor, Tensor) else factor
        return base_forward(x) + scale * nn.functional.conv2d(hidden, pair.up.to(x)[:, :, None, None])

    return forward


def other_batch(name: str, x: Tensor, samples: int) -> ConfigError:
    """What is raised where a layer is called with another number of samples than its changes are for."""
    return ConfigError(
        f"layer {name!r} was called with a batch of {tuple(x.shape)}, but its adapters are for {samples} samples. Give "
        "one adapter (or strength) for each sample of the batch."
    )


class _AdaptedLinear(torch.autograd.Function):
    """linear(x, weight, bias) + up(down(x)) for a frozen weight, as one node of the graph.

    Both sums, the output's and the input's gradient's, are formed in place. Measured over the miniature's 128 layers,
    forward and backward on one CPU thread: 19 to 20 ms, where the same as separate nodes takes 21 to 25.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Tensor:
        tokens = _tokens(x, up.shape[:-2])
        hidden = torch.matmul(tokens, down.mT)
        # From the unaltered x: another shape may take another kernel, and strength 0 is the base bit for bit.
        base = nn.functional.linear(x, weight, bias)
        ctx.save_for_backward(tokens, hidden, weight, down, up)
        ctx.input_shape = x.shape
        # Under autocast the products have another dtype than the factors.
        return _add_product_(_tokens(base, up.shape[:-2]), hidden, up.mT.to(base.dtype)).view(base.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        for_x, _, _, for_down, for_up = ctx.needs_input_grad
        tokens, hidden, weight, down, up = (saved.to(gradient.dtype) for saved in ctx.saved_tensors)
        gradient = _tokens(gradient, up.shape[:-2])
        at_hidden = torch.matmul(gradient, up)
        at_x = _add_product_(torch.matmul(gradient, weight), at_hidden, down) if for_x else None
        return (
            None if at_x is None else at_x.view(ctx.input_shape),
            None,
            None,
            torch.matmul(at_hidden.mT, tokens) if for_down else None,
            # In this order BLAS is faster, and the result lies as a transposed factor (r, o) does.
            torch.matmul(hidden.mT, gradient).mT if for_up else None,
        )


def _tokens(x: Tensor, samples: tuple[int, ...]) -> Tensor:
    """(..., d) as (n, d), or as (b, n, d) for b samples."""
    # A plain reshape: this runs for every layer at every step, and einops costs more than the rank-1 products.
    return x.reshape(*samples, -1, x.shape[-1])


def _add_product_(total: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """total + first @ second, in place, of matrices or of batches of them."""
    return total.addmm_(first, second) if total.dim() == 2 else total.baddbmm_(first, second)


def _folded(layer: nn.Module, pair: LoraPair, strength: float | Tensor) -> tuple[Tensor, Tensor]:
    """The factors in the layer's device and dtype, strength in `up`; both are (b, ...) if anything is per sample."""
    down, up = pair.down, pair.up
    if isinstance(strength, Tensor):
        up = up * strength.to(up)[..., None, None] if strength.dim() else up * strength.to(up)
    elif strength != 1:
        up = up * strength
    samples = max(down.shape[:-2], up.shape[:-2])
    down, up = down.expand(*samples, *down.shape[-2:]), up.expand(*samples, *up.shape[-2:])
    weight = getattr(layer, "weight", None)
    if isinstance(weight, Tensor):
        # Quantised layers hold integers (or 8-bit floats): their factors keep their own dtype, and follow the input's.
        dtype = weight.dtype if weight.is_floating_point() and weight.element_size() > 1 else down.dtype
        down, up = down.to(weight.device, dtype), up.to(weight.device, dtype)
    return down, up
