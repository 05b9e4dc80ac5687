"""Stable Diffusion 1.x as ComfyUI configures it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from .model_base import BaseModel, ModelType
from .unet import UNetModel


class SD15:
    unet_extra_config: ClassVar[dict[str, int]] = {"num_heads": 8, "num_head_channels": -1}
    latent_format: Any = None

    def __init__(self, unet_config: dict[str, Any]) -> None:
        self.unet_config = {**unet_config, **self.unet_extra_config}

    def set_inference_dtype(self, dtype: torch.dtype, manual_cast_dtype: Any) -> None:
        self.unet_config["dtype"] = dtype

    def model_type(self, state_dict: Any, prefix: str = "") -> ModelType:
        return ModelType.EPS

    def inpaint_model(self) -> bool:
        return bool(self.unet_config["in_channels"] > 4)

    def get_model(self, state_dict: Any, prefix: str = "", device: Any = None) -> BaseModel:
        assert not self.inpaint_model()
        unet = UNetModel(self.unet_config, self.unet_config["num_heads"])
        return BaseModel(unet, self.model_type(state_dict), self.latent_format())
