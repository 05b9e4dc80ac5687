"""Which noise levels to train at, and how much each counts."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ConfigError
from .process import NoiseProcess


def biased_t(generator: torch.Generator, samples: int, power: float = 1.0) -> Tensor:
    """Random noise levels (samples,) with density power * t ** (power - 1): 1 is uniform, more favours high noise."""
    if power <= 0:
        raise ConfigError(f"the power of the noise bias must be above 0, got {power}; 1 is uniform")
    return torch.rand(samples, generator=generator, device=generator.device) ** (1 / power)


def min_snr_weight(process: NoiseProcess, t: Tensor, gamma: float = 5.0) -> Tensor:
    """The weight (b,) of a squared error of the network's output: min(snr, gamma) of the clean sample's.

    Source: Hang et al., arXiv:2303.09556; gamma = 5 is theirs.
    """
    at = process.coefficients(t)
    # The clean sample's error is the output's times spread / determinant, so that the square of this stands in each
    # weight: 1 / snr for epsilon, 1 / (snr + 1) for v_prediction. As snr is (signal / spread)^2, its own factor is
    # (signal / determinant)^2, which is finite in pure noise, too.
    return torch.minimum((at.signal / at.determinant).square(), gamma * (at.spread / at.determinant).square())
