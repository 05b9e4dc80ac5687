"""A quantised weight as packed codes and scales, and the weight that it stands for.

    W = scale_out * group_scale * (codes - zero_point) * scale_in        int8, int4
    W = scale_out * group_scale * levels[codes] * scale_in               nf4

A worked example in int4, one output of four inputs in groups of two:

    codes (3, 0, 15, 1), packed    0x30 0xf1      the first of two in the upper half, as in bitsandbytes
    zero_point of both groups      1, 0
    scale_out, group_scale         0.5 and (1, 0.25): a step is 0.5 in the first group, 0.125 in the second
    W                              (1, -0.5, 1.875, 0.125)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from torch import Tensor

from .kinds import get_kind, groups_of


@dataclass(frozen=True, eq=False, kw_only=True)
class QuantizedWeight:
    """The weight of a linear layer (o, i) or a convolution (o, c, h, w), whose inputs are i = c * h * w."""

    kind: str
    shape: tuple[int, ...]
    group: int
    """inputs that share a scale; the last group of an output may be smaller"""
    codes: Tensor
    """(o, bytes) uint8, a whole number of bytes for each output"""
    scale_out: Tensor
    """(o,) float32"""
    group_scale: Tensor | None = None
    """(o, groups) float16 in 0..1, times the output's own; None where there is one group"""
    zero_point: Tensor | None = None
    """(o, groups) uint8, in the codes' range; None in nf4"""
    scale_in: Tensor | None = None
    """(i,) or (c,) float32; None is 1 everywhere"""

    @property
    def inputs(self) -> int:
        return math.prod(self.shape[1:])

    def tensors(self) -> dict[str, Tensor | None]:
        """The parts of the weight that are tensors, by their names."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("kind", "shape", "group")}

    def size_in_bytes(self) -> int:
        """Of all tensors."""
        parts = [tensor for tensor in self.tensors().values() if tensor is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in parts)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (o, i) uint8 as bytes (o, ceil(i * bits / 8)); of an odd number of 4-bit codes the last half byte is 0."""
    if bits == 8:
        return codes
    if codes.shape[1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return codes[:, ::2] << 4 | codes[:, 1::2]


def unpacked(codes: Tensor, kind: str, inputs: int) -> Tensor:
    """What the codes in bytes (o, bytes) stand for in units of the scale, zero point not taken off: (o, i) float32."""
    known = get_kind(kind)
    if known.bits == 8:
        return codes.float()
    # One look into a table of all bytes gives both halves, as one number of 64 bits: twice as fast as rows of two.
    pairs = _pairs(kind, codes.device).index_select(0, codes.flatten().int())
    return pairs.view(torch.float32).view(len(codes), -1)[:, :inputs]


def dequantize(weight: QuantizedWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight (o, i) or (o, c, h, w) that the codes stand for, computed in float32."""
    values = unpacked(weight.codes, weight.kind, weight.inputs)
    scale = scales(weight)
    for part, groups in by_group(values, weight.group):
        if weight.zero_point is not None:
            part.sub_(weight.zero_point[:, groups, None].float())
        part.mul_(scale[:, groups, None])
    values = values.reshape(weight.shape)
    if weight.scale_in is not None:
        values.mul_(weight.scale_in.view(1, -1, *[1] * (len(weight.shape) - 2)))
    return values.to(dtype)


def scales(weight: QuantizedWeight) -> Tensor:
    """The scale of each group (o, groups), without the inputs' own."""
    scale = weight.scale_out[:, None]
    return scale if weight.group_scale is None else scale * weight.group_scale.float()


def by_group(values: Tensor, group: int) -> Iterator[tuple[Tensor, slice]]:
    """Views (o, groups, group) of values (o, i), and which groups these are: all whole ones, then the smaller last."""
    whole = values.shape[1] // group
    if whole:
        yield values[:, : whole * group].unflatten(1, (whole, group)), slice(0, whole)
    if whole < groups_of(values.shape[1], group):
        yield values[:, None, whole * group :], slice(whole, whole + 1)


@lru_cache(maxsize=16)
def _pairs(kind: str, device: torch.device) -> Tensor:
    """(256,), what both halves of each byte stand for: two float32 side by side, seen as one int64."""
    levels = torch.tensor(get_kind(kind).levels)
    pairs = torch.stack([levels.repeat_interleave(16), levels.repeat(16)], dim=1)
    return pairs.view(torch.int64).flatten().to(device)
