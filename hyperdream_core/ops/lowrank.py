"""A low-rank weight change as a pair of factors: delta = up @ down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LoraPair:
    """The two LoRA factors of one layer; leading axes, if any, are equal (one adapter per sample)."""

    down: Tensor
    """(..., r, i)"""
    up: Tensor
    """(..., o, r)"""

    @property
    def rank(self) -> int:
        return self.down.shape[-2]

    @property
    def samples(self) -> int | None:
        """Of how many samples it holds a pair each; None: one pair that all samples share."""
        return next(iter((*self.down.shape[:-2], *self.up.shape[:-2])), None)

    def to(self, device: torch.device) -> LoraPair:
        """The same pair on a device."""
        return LoraPair(self.down.to(device), self.up.to(device))

    def rows(self, rows: slice) -> LoraPair:
        """The pairs of some of its samples; one that all share is itself."""
        return self if self.samples is None else LoraPair(self.down[rows], self.up[rows])

    def repeat_each(self, count: int) -> LoraPair:
        """Every sample's pair so many times in a row; one that all share is itself."""
        if self.samples is None:
            return self
        return LoraPair(self.down.repeat_interleave(count, 0), self.up.repeat_interleave(count, 0))


def delta(pair: LoraPair) -> Tensor:
    """The weight change (..., o, i) that the pair stands for."""
    return torch.einsum("...or,...ri->...oi", pair.up, pair.down)


def scale(pair: LoraPair, strength: float | Tensor) -> LoraPair:
    """The pair whose delta is `strength` times as large; a tensor strength has the leading axes (...)."""
    if isinstance(strength, Tensor) and strength.ndim > 0:
        strength = strength[..., None, None]
    return LoraPair(pair.down, pair.up * strength)


def concatenate(pairs: Sequence[LoraPair]) -> LoraPair:
    """The pair whose delta is exactly the sum of the deltas; its rank is the sum of the ranks."""
    return LoraPair(torch.cat([pair.down for pair in pairs], dim=-2), torch.cat([pair.up for pair in pairs], dim=-1))


def canonicalize(pair: LoraPair) -> LoraPair:
    """The one representative of all pairs with the same delta: orthonormal rows in down, scale in up.

    down's rows are the right singular vectors of the delta, strongest first, each signed so that its
    entry of largest magnitude is positive. The SVD is that of the r x r core between two thin QRs, in
    float64. At rank 1 this is: unit-norm down, fixed sign, all scale in up.

    Args:
        pair: down (..., r, i) and up (..., o, r).

    Returns:
        down (..., k, i) and up (..., o, k), k = min(r, i, o), in the dtypes of the pair.

    Source: the gauge freedom of HyperDreamBooth's weight loss, arXiv:2307.06949; the choice is ours.
    """
    if pair.rank == 1:
        norm = pair.down.double().norm(dim=-1, keepdim=True)
        # A zero down has no direction; it stays zero, and so does its delta.
        down, up = pair.down.double() / norm.clamp_min(1e-300), pair.up.double() * norm
    else:
        left, left_core = torch.linalg.qr(pair.up.double())
        right, right_core = torch.linalg.qr(pair.down.double().mT)
        u, singular, vt = torch.linalg.svd(left_core @ right_core.mT, full_matrices=False)
        down, up = vt @ right.mT, (left @ u) * singular[..., None, :]
    largest = down.gather(-1, down.abs().argmax(dim=-1, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(down.dtype)
    return LoraPair((down * sign).to(pair.down.dtype), (up * sign.mT).to(pair.up.dtype))
