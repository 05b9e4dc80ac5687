"""Linear layers and convolutions whose frozen weights are packed in 8 or 4 bits.

A layer is dequantised when it is called and again for its gradient, and in between nothing but the packed weight is
kept: no copy in full precision outlives the call. The weight itself is frozen. Gradients reach the input, the bias and,
where they are asked for, the scales:

    y = W_hat x + bias,   W_hat = scale_out * R * scale_in       R: codes less zero points, times the groups' shares
    dL/dx         = W_hat^T dL/dy
    dL/dscale_out = sum of dL/dy * (W_hat x) / scale_out         over all tokens or places
    dL/dscale_in  = sum of x * (W_hat^T dL/dy) / scale_in

The weight is dequantised in float32 and then cast to the input's dtype, so that small changes of a scale are not lost
among half precision's steps. Scales stay in their dtypes whatever the network is cast to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from ..errors import ConfigError
from ..ops.quantize import QuantizedWeight, dequantize, quantize


class _Geometry(NamedTuple):
    """Of a convolution."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


class QuantizedLayer(nn.Module):
    """A layer with a quantised, frozen weight: what linear layers and convolutions have in common."""

    bias: nn.Parameter | None
    codes: Tensor
    scale_out: Tensor
    group_scale: Tensor | None
    zero_point: Tensor | None
    scale_in: Tensor | None
    _geometry: _Geometry | None = None

    def __init__(self, weight: QuantizedWeight, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.kind, self.shape, self.group = weight.kind, weight.shape, weight.group
        for name, tensor in weight.tensors().items():
            self.register_buffer(name, tensor)
        self.register_parameter("bias", bias)

    @property
    def quantized(self) -> QuantizedWeight:
        """The weight as it is stored; its tensors are the layer's own."""
        tensors: dict[str, Any] = {name: getattr(self, name) for name in _PARTS}
        return QuantizedWeight(kind=self.kind, shape=self.shape, group=self.group, **tensors)

    def forward(self, x: Tensor) -> Tensor:
        """Of the weight that the codes stand for; see the module."""
        weight, bias, geometry = self.quantized, self.bias, self._geometry
        if weight.scale_in is not None and weight.scale_in.requires_grad:
            x = x * _along(_one(weight.scale_in), x, geometry)
        if not weight.scale_out.requires_grad:
            return _product(x, weight, bias, geometry)
        y = _product(x, weight, None, geometry)
        y = y * _along(_one(weight.scale_out), y, geometry)
        return y if bias is None else y + _along(bias, y, geometry)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLayer:
        # `half()` would round trained scales away; what is computed with has the input's dtype anyway.
        kept = {name: tensor for name, tensor in self._buffers.items() if tensor is not None}
        super()._apply(fn, recurse)
        for name, tensor in kept.items():
            device = self._buffers[name].device  # type: ignore[union-attr]
            self._buffers[name] = tensor if tensor.device == device else tensor.to(device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if self.scale_in is None and f"{prefix}scale_in" in state_dict:
            self.scale_in = torch.ones_like(state_dict[f"{prefix}scale_in"], device=self.codes.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class QuantizedLinear(QuantizedLayer):
    """A linear layer with a quantised weight (o, i)."""

    def __init__(self, weight: QuantizedWeight, bias: nn.Parameter | None = None) -> None:
        super().__init__(weight, bias)
        self.out_features, self.in_features = weight.shape

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.kind}, group={self.group}"


class QuantizedConv2d(QuantizedLayer):
    """A convolution with a quantised weight (o, c, h, w), zero padding and one group of channels."""

    def __init__(self, weight: QuantizedWeight, bias: nn.Parameter | None, like: nn.Conv2d) -> None:
        super().__init__(weight, bias)
        self.out_channels, self.in_channels, *_ = weight.shape
        self.kernel_size, self.stride, self.dilation = like.kernel_size, like.stride, like.dilation
        self.padding = _numbers(like)
        self._geometry = _Geometry(self.stride, self.padding, self.dilation)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel={self.kernel_size}, {self.kind}, group={self.group}"


def quantized_layer(
    layer: nn.Linear | nn.Conv2d, kind: str, group: int | None = None, fit: str = "best"
) -> QuantizedLinear | QuantizedConv2d:
    """A layer like this one with its weight quantised and the same bias tensor; see `ops.quantize.quantize`.

    Raises:
        ConfigError: an unknown kind or fit, an odd group, numbers that are not finite, or a convolution with several
            groups of channels or a padding other than zeros.
    """
    bias: Any = layer.bias
    if isinstance(layer, nn.Linear):
        return QuantizedLinear(quantize(layer.weight, kind, group, fit), bias)
    if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise ConfigError(
            f"a convolution with {layer.groups} groups of channels, padding {layer.padding!r} and mode "
            f"{layer.padding_mode!r} cannot be quantised, expected 1 group and so many px of zeros; leave it as it is"
        )
    return QuantizedConv2d(quantize(layer.weight, kind, group, fit), bias, layer)


_PARTS = ("codes", "scale_out", "group_scale", "zero_point", "scale_in")


class _Dequantized(torch.autograd.Function):
    """The product with a quantised weight; for the gradient it keeps the packed weight and not even the input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, weight: QuantizedWeight, geometry: _Geometry | None
    ) -> Tensor:
        ctx.save_for_backward(*weight.tensors().values())
        ctx.stored = {"kind": weight.kind, "shape": weight.shape, "group": weight.group}
        ctx.geometry, ctx.shape, ctx.dtype = geometry, x.shape, x.dtype
        dense = dequantize(weight, x.dtype)
        bias = None if bias is None else bias.to(x.dtype)
        if geometry is None:
            return nn.functional.linear(x, dense, bias)
        return nn.functional.conv2d(x, dense, bias, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        for_x, for_bias, *_ = ctx.needs_input_grad
        at_x = at_bias = None
        if for_x:
            weight = QuantizedWeight(**ctx.stored, **dict(zip(_PARTS, ctx.saved_tensors, strict=True)))
            dense = dequantize(weight, gradient.dtype)
            linear, shape = ctx.geometry is None, ctx.shape
            at_x = gradient @ dense if linear else conv2d_input(shape, dense, gradient, *ctx.geometry)
            at_x = at_x.to(ctx.dtype)
        if for_bias:
            over = gradient.flatten(0, -2) if ctx.geometry is None else gradient.transpose(0, 1).flatten(1).mT
            at_bias = over.sum(0)
        return at_x, at_bias, None, None


def _product(x: Tensor, weight: QuantizedWeight, bias: Tensor | None, geometry: _Geometry | None) -> Tensor:
    result: Tensor = _Dequantized.apply(x, bias, weight, geometry)
    return result


def _one(scale: Tensor) -> Tensor:
    """1, with the gradient of the scale's own logarithm: of what is multiplied with it, that of the scale."""
    return scale / scale.detach()


def _along(vector: Tensor, like: Tensor, geometry: _Geometry | None) -> Tensor:
    """A vector in the other's dtype, shaped to meet its features, the last axis, or its channels, the second."""
    vector = vector.to(like.dtype)
    return vector if geometry is None else vector[:, None, None]


def _numbers(layer: nn.Conv2d) -> tuple[int, ...]:
    assert not isinstance(layer.padding, str), "refused before"
    return layer.padding
