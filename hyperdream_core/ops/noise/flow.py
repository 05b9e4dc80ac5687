"""Rectified flow: straight ways from pictures to noise, as SD 3 and FLUX have them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import ConfigError
from .process import Coefficients, NoiseProcess


@dataclass(frozen=True, kw_only=True)
class RectifiedFlow(NoiseProcess):
    """x_t = (1 - t) clean + t noise; the network puts out the way's direction, noise - clean.

    Source: Liu et al., arXiv:2209.03003; the shift: Esser et al., arXiv:2403.03206, section 5.3.2.
    """

    shift: float = 1.0
    """How much more of its steps a sampler spends in noise, as large pictures need: a level t becomes
    shift * t / (1 + (shift - 1) * t). 1 spaces them evenly."""
    time_scale: float = 1000.0
    """What the network is told at t = 1."""

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise ConfigError(f"the shift of a flow must be above 0, got {self.shift}; 1 spaces the steps evenly")

    @property
    def name(self) -> str:
        return "flow"

    def coefficients(self, t: Tensor) -> Coefficients:
        wide = t.to(torch.promote_types(t.dtype, torch.float32))
        one = torch.ones_like(wide)
        return Coefficients(1 - wide, wide, -one, one)

    def model_time(self, t: Tensor) -> Tensor:
        return t * self.time_scale

    def levels(self, steps: int) -> Tensor:
        even = torch.arange(steps, 0, -1, dtype=torch.float64) / steps
        return (self.shift * even / (1 + (self.shift - 1) * even)).float()
