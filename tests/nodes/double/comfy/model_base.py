"""Kinds of models, and a model with its sampling."""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from . import model_sampling


class ModelType(Enum):
    EPS = 1
    V_PREDICTION = 2


class BaseModel(nn.Module):
    manual_cast_dtype = None

    def __init__(self, diffusion_model: nn.Module, model_type: ModelType, latent_format: Any) -> None:
        super().__init__()
        self.diffusion_model, self.latent_format = diffusion_model, latent_format
        kind = model_sampling.EPS if model_type == ModelType.EPS else model_sampling.V_PREDICTION
        self.model_sampling = type("ModelSampling", (model_sampling.ModelSamplingDiscrete, kind), {})()

    def get_dtype(self) -> torch.dtype:
        return next(self.diffusion_model.parameters()).dtype

    def process_latent_in(self, latents: Tensor) -> Tensor:
        return latents * self.latent_format.scale_factor

    def process_latent_out(self, latents: Tensor) -> Tensor:
        return latents / self.latent_format.scale_factor
