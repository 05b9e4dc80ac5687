"""Noise: schedules, what a diffusion model predicts, and which noise levels to train on.

`t` is the noise level, 0 clean to 1 noise; a `timestep` is the integer that a base knows. `alpha_bar` is the share of
signal power left at a timestep, (b,), and x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import ConfigError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
"""What the model puts out, in diffusers' words: the noise, the velocity or the clean sample."""


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


def add_noise(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_t of clean samples and noise, both (b, ...), at alpha_bar (b,)."""
    signal, spread = _coefficients(alpha_bar, x0)
    return signal * x0 + spread * noise


def velocity(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x0, (b, ...). Source: Salimans and Ho, arXiv:2202.00512."""
    signal, spread = _coefficients(alpha_bar, x0)
    return signal * noise - spread * x0


def target(x0: Tensor, noise: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """What the model should put out, (b, ...)."""
    _check(prediction_type)
    if prediction_type == "epsilon":
        return noise
    return velocity(x0, noise, alpha_bar) if prediction_type == "v_prediction" else x0


def predicted_x0(output: Tensor, x_t: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """The clean sample (b, ...) that a model's output at x_t stands for; epsilon needs alpha_bar > 0."""
    _check(prediction_type)
    signal, spread = _coefficients(alpha_bar, x_t)
    if prediction_type == "epsilon":
        return (x_t - spread * output) / signal
    return signal * x_t - spread * output if prediction_type == "v_prediction" else output


def predicted_noise(output: Tensor, x_t: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """The noise (b, ...) that a model's output at x_t stands for; sample needs alpha_bar < 1."""
    _check(prediction_type)
    signal, spread = _coefficients(alpha_bar, x_t)
    if prediction_type == "epsilon":
        return output
    return spread * x_t + signal * output if prediction_type == "v_prediction" else (x_t - signal * output) / spread


def to_timestep(t: Tensor, count: int = 1000) -> Tensor:
    """The timestep, int64 in 0..count-1, that owns the noise level: k owns [k / count, (k + 1) / count)."""
    return (t.double() * count).floor().long().clamp(0, count - 1)


def to_t(timestep: Tensor, count: int = 1000) -> Tensor:
    """The noise level in the middle of a timestep's interval, float32, so that `to_timestep` gives it back."""
    return ((timestep.double() + 0.5) / count).float()


def biased_t(generator: torch.Generator, samples: int, power: float = 1.0) -> Tensor:
    """Random noise levels (samples,) with density power * t ** (power - 1): 1 is uniform, more favours high noise."""
    if power <= 0:
        raise ConfigError(f"the power of the noise bias must be above 0, got {power}; 1 is uniform")
    return torch.rand(samples, generator=generator, device=generator.device) ** (1 / power)


def min_snr_weight(alpha_bar: Tensor, prediction_type: str, gamma: float = 5.0) -> Tensor:
    """The loss weight (b,) min(snr, gamma), divided by what the prediction type weighs by itself.

    Source: Hang et al., arXiv:2303.09556; gamma = 5 is theirs.
    """
    _check(prediction_type)
    if prediction_type == "epsilon":
        # min(snr, gamma) / snr, in a form that stays finite in pure noise, where snr is 0.
        return torch.minimum(torch.ones_like(alpha_bar), gamma * (1 - alpha_bar) / alpha_bar)
    snr = alpha_bar / (1 - alpha_bar)
    clipped = snr.clamp(max=gamma)
    # v's own weight is snr + 1 = 1 / (1 - alpha_bar).
    return clipped * (1 - alpha_bar) if prediction_type == "v_prediction" else clipped


def _coefficients(alpha_bar: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(alpha_bar) and sqrt(1 - alpha_bar), taken in float32 or wider, shaped to multiply (b, ...)."""
    wide = alpha_bar.to(like.device, torch.promote_types(alpha_bar.dtype, torch.float32))
    wide = wide.reshape(-1, *[1] * (like.ndim - 1))
    return wide.sqrt().to(like.dtype), (1 - wide).sqrt().to(like.dtype)


def _check(prediction_type: str) -> None:
    if prediction_type not in PREDICTION_TYPES:
        raise ConfigError(f"unknown prediction type {prediction_type!r}; known: {', '.join(PREDICTION_TYPES)}")
