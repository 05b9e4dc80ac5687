"""Discrete diffusion: a schedule of timesteps, and a network that puts out noise, velocity or the clean sample.

A timestep is the integer that the network knows, 0..n-1; timestep k owns the noise levels [k / n, (k + 1) / n).
`alpha_bar` is the share of signal power left at a timestep.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import ConfigError
from .process import Coefficients, NoiseProcess

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
"""What the network puts out, in diffusers' words: the noise, the velocity or the clean sample."""

_LEAST_SIGNAL = 2.0**-24
"""The least alpha_bar for epsilon, which tells nothing of a picture in pure noise; diffusers' own."""


@dataclass(frozen=True, eq=False)
class DiscreteDiffusion(NoiseProcess):
    """x_t = sqrt(alpha_bar) clean + sqrt(1 - alpha_bar) noise, at the timestep that owns t.

    Source: DDPM, Ho et al., arXiv:2006.11239; the velocity: Salimans and Ho, arXiv:2202.00512.

    Raises:
        ConfigError: an unknown prediction type.
    """

    alphas_cumprod: Tensor
    """alpha_bar of each timestep, (n,), falling"""
    prediction_type: str = "epsilon"
    """one of `PREDICTION_TYPES`"""

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTION_TYPES:
            raise ConfigError(
                f"unknown prediction type {self.prediction_type!r}; known: {', '.join(PREDICTION_TYPES)}. Use one of "
                "them."
            )

    @property
    def name(self) -> str:
        return self.prediction_type

    def coefficients(self, t: Tensor) -> Coefficients:
        table = self.alphas_cumprod.to(t.device, torch.promote_types(self.alphas_cumprod.dtype, torch.float32))
        alpha_bar = table[self.model_time(t)]
        if self.prediction_type == "epsilon":
            alpha_bar = alpha_bar.clamp_min(_LEAST_SIGNAL)
        signal, spread = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        if self.prediction_type == "v_prediction":
            return Coefficients(signal, spread, -spread, signal)
        one, zero = torch.ones_like(signal), torch.zeros_like(signal)
        return (
            Coefficients(signal, spread, zero, one)
            if self.prediction_type == "epsilon"
            else Coefficients(signal, spread, one, zero)
        )

    def model_time(self, t: Tensor) -> Tensor:
        return to_timestep(t, len(self.alphas_cumprod))

    def levels(self, steps: int) -> Tensor:
        # diffusers' "trailing": "leading" starts below the last timestep, where latents are not yet pure noise.
        count = len(self.alphas_cumprod)
        ends = count - torch.arange(steps, dtype=torch.float64) * (count / steps)
        return to_t((ends.round().long() - 1).clamp_min(0), count)


def alphas_cumprod(
    schedule: str = "scaled_linear", steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> Tensor:
    """alpha_bar of each timestep, (steps,) float64, falling.

    Args:
        schedule: `linear`, `scaled_linear` (linear in sqrt(beta); Stable Diffusion's) or `squaredcos_cap_v2` (Nichol
            and Dhariwal, arXiv:2102.09672, eq. 17, with beta at most 0.999; takes no beta_start and beta_end).
        steps: number of timesteps.
        beta_start: variance added at the first timestep; Stable Diffusion's by default.
        beta_end: at the last one.
    """
    if schedule == "linear":
        betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
    elif schedule == "scaled_linear":
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64).square()
    elif schedule == "squaredcos_cap_v2":
        edges = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        signal = ((edges + 0.008) / 1.008 * math.pi / 2).cos().square()
        betas = (1 - signal[1:] / signal[:-1]).clamp(max=0.999)
    else:
        raise ConfigError(
            f"unknown noise schedule {schedule!r}; known: linear, scaled_linear, squaredcos_cap_v2. Use one of them."
        )
    return (1 - betas).cumprod(0)


def zero_terminal_snr(alpha_bars: Tensor) -> Tensor:
    """The schedule (n,) shifted and stretched so that its last entry is exactly 0: pure noise.

    Source: Lin et al., arXiv:2305.08891, algorithm 1.
    """
    root = alpha_bars.sqrt()
    return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))).square()


def to_timestep(t: Tensor, count: int = 1000) -> Tensor:
    """The timestep, int64 in 0..count-1, that owns the noise level: k owns [k / count, (k + 1) / count)."""
    return (t.double() * count).floor().long().clamp(0, count - 1)


def to_t(timestep: Tensor, count: int = 1000) -> Tensor:
    """The noise level in the middle of a timestep's interval, float32, so that `to_timestep` gives it back."""
    return ((timestep.double() + 0.5) / count).float()
