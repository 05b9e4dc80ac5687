"""The fit of codes to a weight: by its smallest and largest number, or by the clipping that errs least.

Min-max leaves nothing out: a group's step is its range over the largest code, and one outlier makes it coarse for all
the others. The best fit tries narrower ranges, clips what lies beyond, keeps for each group the one whose squared error
is least, and then sets the step to the least squares solution for the codes found, <W, c> / <c, c>.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ConfigError
from .kinds import Kind, get_kind, group_of, groups_of
from .packed import QuantizedWeight, by_group, pack

FITS = ("best", "min-max")

_SHARES = {"int8": (1.0,), "int4": (1.0, 0.94, 0.88, 0.82, 0.76, 0.68, 0.6), "nf4": (1.0, 0.94, 0.87, 0.8, 0.7)}
"""Of the range, tried by the best fit. Three times as many lower the error of normal and of heavy-tailed weights
(Student's t, 4 degrees of freedom) by less than 2 percent of itself, and in int8 no clipping lowers it."""
_AT_ONCE = 2**18
"""numbers of a weight that are fitted at once: they stay in a core's cache, and little memory is needed beside it"""


def quantize(weight: Tensor, kind: str, group: int | None = None, fit: str = "best") -> QuantizedWeight:
    """The codes and scales that stand for a weight, on its device.

    Args:
        weight: (o, i), or (o, c, h, w) of a convolution.
        kind: `int8`, `int4` or `nf4`.
        group: inputs that share a scale, an even number; None takes the kind's own, 0 all inputs of an output.
        fit: `best` or `min-max`.

    Raises:
        ConfigError: an unknown kind or fit, an odd group, a weight that has neither two nor four axes or is empty, or
            holds numbers that are not finite.
    """
    known = get_kind(kind)
    if fit not in FITS:
        raise ConfigError(f"unknown fit {fit!r}; known: {', '.join(FITS)}")
    _check(weight)
    rows = weight.detach().flatten(1)
    inputs = rows.shape[1]
    group = group_of(known, inputs, group)
    parts = [_fitted(part.float(), known, group, fit) for part in rows.split(max(1, _AT_ONCE // inputs))]
    codes, scale_out, group_scale, zero_point = (torch.cat(side) for side in zip(*parts, strict=True))
    return QuantizedWeight(
        kind=kind,
        shape=tuple(weight.shape),
        group=group,
        codes=codes,
        scale_out=scale_out,
        group_scale=group_scale if groups_of(inputs, group) > 1 else None,
        zero_point=zero_point if known.has_zero_point else None,
    )


def _check(weight: Tensor) -> None:
    if weight.dim() not in (2, 4) or not weight.numel() or not weight.is_floating_point():
        raise ConfigError(
            f"a weight of the shape {tuple(weight.shape)} and {weight.dtype} cannot be quantised, expected "
            "floating-point numbers (outputs, inputs) or (outputs, channels, height, width); leave that layer as it is"
        )
    wrong = int((~weight.detach().isfinite()).sum())
    if wrong:
        raise ConfigError(
            f"the weight holds {wrong:,} of {weight.numel():,} numbers that are not finite, so that no scale fits it; "
            "get the checkpoint again"
        )


def _fitted(rows: Tensor, kind: Kind, group: int, fit: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Packed codes, scale_out (o,), group_scale (o, groups) and zero_point (o, groups) of rows (o, i)."""
    found = [_solved(part, kind, fit) for part, _ in by_group(rows, group)]
    step, zero = (torch.cat(side, dim=1) for side in zip(*found, strict=True))
    scale_out = step.amax(dim=1)
    # A row of zeros has no scale; 1 keeps what is trained on it finite.
    scale_out = torch.where(scale_out > 0, scale_out, 1.0)
    group_scale = (step / scale_out[:, None]).half()
    # Codes for the scales as they are stored, so that their rounding costs next to nothing.
    step = scale_out[:, None] * group_scale.float() if step.shape[1] > 1 else scale_out[:, None]
    codes = torch.empty_like(rows, dtype=torch.uint8)
    for (part, groups), (into, _) in zip(by_group(rows, group), by_group(codes, group), strict=True):
        into.copy_(_nearest(part, step[:, groups, None], zero[:, groups, None], kind))
    return pack(codes, kind.bits), scale_out, group_scale, zero.to(torch.uint8)


def _solved(values: Tensor, kind: Kind, fit: str) -> tuple[Tensor, Tensor]:
    """Step and zero point (o, groups) of values (o, groups, group)."""
    step, zero = _of_range(values, kind, 1.0)
    if fit == "best":
        least = torch.full_like(step, torch.inf)
        for share in _SHARES[kind.name]:
            tried, its_zero = _of_range(values, kind, share)
            units = _units(values, tried, its_zero, kind)
            square = units.square().sum(-1, keepdim=True)
            is_some = square > 0
            solved = torch.where(is_some, (values * units).sum(-1, keepdim=True) / square.where(is_some, 1.0), tried)
            error = (values - solved * units).square().sum(-1, keepdim=True)
            is_better = (error < least) & (solved > 0)
            least = torch.where(is_better, error, least)
            step, zero = torch.where(is_better, solved, step), torch.where(is_better, its_zero, zero)
    return step[..., 0], zero[..., 0]


def _of_range(values: Tensor, kind: Kind, share: float) -> tuple[Tensor, Tensor]:
    """Step and zero point (o, groups, 1) that cover a share of the range of values (o, groups, group)."""
    if not kind.has_zero_point:
        largest = values.abs().amax(-1, keepdim=True)
        return largest * share, torch.zeros_like(largest)
    # With 0 in the range, a weight of 0 stays 0, and the zero point is one of the codes.
    low = values.amin(-1, keepdim=True).clamp_max(0)
    high = values.amax(-1, keepdim=True).clamp_min(0)
    step = (high - low) * (share / kind.most)
    return step, (-low * share / step.where(step > 0, 1.0)).round().clamp(0, kind.most)


def _nearest(values: Tensor, step: Tensor, zero: Tensor, kind: Kind) -> Tensor:
    """The codes closest to values (o, groups, group), as whole numbers; a step of 0 is of a group of zeros."""
    scaled = values / step.where(step > 0, 1.0)
    if kind.has_zero_point:
        return scaled.round_().add_(zero).clamp_(0, kind.most)
    levels = torch.tensor(kind.levels, device=values.device)
    return torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2, out_int32=True)


def _units(values: Tensor, step: Tensor, zero: Tensor, kind: Kind) -> Tensor:
    """What the closest codes stand for, in steps."""
    codes = _nearest(values, step, zero, kind)
    if kind.has_zero_point:
        return codes.sub_(zero)
    return torch.tensor(kind.levels, device=values.device)[codes]
