"""Noise levels, and what a model predicts."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EPS:
    pass


class V_PREDICTION(EPS):
    pass


class EDM(V_PREDICTION):
    pass


class ModelSamplingDiscrete(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        alpha_bar = torch.cumprod(1.0 - betas, 0)
        self.register_buffer("sigmas", ((1 - alpha_bar) / alpha_bar).sqrt().float())

    def timestep(self, sigma: Tensor) -> Tensor:
        log_sigmas: Tensor = self.sigmas.log()
        return (sigma.log()[None] - log_sigmas[:, None]).abs().argmin(0)

    def percent_to_sigma(self, percent: float) -> float:
        if percent <= 0.0:
            return 999999999.9
        if percent >= 1.0:
            return 0.0
        sigmas: Tensor = self.sigmas
        return float(sigmas[round((1.0 - percent) * 999.0)])
