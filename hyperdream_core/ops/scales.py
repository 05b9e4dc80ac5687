"""A change of a layer's scales, on the output side and perhaps on the input side.

    W' = (s_out + ds_out) * (W_q - z) * (s_in + ds_in)
       = diag(1 + a) W diag(1 + b),     a = ds_out / s_out,  b = ds_in / s_in

What is held is a and b, the changes relative to the base's own scales: so they are of one size in all layers and kinds
of quantisation, groups of inputs keep their proportions, and s_in, which bases do not have, is simply 1.

A worked example, W = [[2, 4], [1, 1]], a = (0.5, 0), b = (0, -0.5): W' = [[3, 3], [1, 0.5]].

Source: PEQA, arXiv:2305.14152 (output side only); TuneQDM's multi-channel-wise scale update (both sides).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ScaleChange:
    """The relative change of one layer's scales; leading axes, if any, are equal (one change per sample)."""

    scale_out: Tensor
    """(..., o)"""
    scale_in: Tensor | None = None
    """(..., i), of a convolution (..., c); None leaves the input side as it is"""

    @property
    def samples(self) -> int | None:
        """Of how many samples it holds a change each; None: one change that all samples share."""
        return next(iter(self.scale_out.shape[:-1]), None)

    def to(self, device: torch.device) -> ScaleChange:
        """The same change on a device."""
        return self._with(lambda side: side.to(device))

    def rows(self, rows: slice) -> ScaleChange:
        """The changes of some of its samples; one that all share is itself."""
        return self if self.samples is None else self._with(lambda side: side[rows])

    def repeat_each(self, count: int) -> ScaleChange:
        """Every sample's change so many times in a row; one that all share is itself."""
        return self if self.samples is None else self._with(lambda side: side.repeat_interleave(count, 0))

    def _with(self, function: Callable[[Tensor], Tensor]) -> ScaleChange:
        return ScaleChange(function(self.scale_out), None if self.scale_in is None else function(self.scale_in))
