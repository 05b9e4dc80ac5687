"""Stable Diffusion XL, without its refiner."""

from __future__ import annotations

from .family import BaseFamily, TextEncoderShape, UNetShape

SDXL = BaseFamily(
    name="sdxl",
    title="Stable Diffusion XL",
    unet=UNetShape(channels=(320, 640, 1280), transformer_depth=(0, 2, 10), context_dim=2048, middle_depth=10),
    text_encoders=(
        TextEncoderShape(name="text_encoder", width=768, layers=12, ldm_prefix="conditioner.embedders.0.transformer"),
        TextEncoderShape(
            name="text_encoder_2", width=1280, layers=32, ldm_prefix="conditioner.embedders.1.model", is_open_clip=True
        ),
    ),
    picture_size=1024,
    prediction_types=("epsilon", "v_prediction"),
    ss_base_model_version="sdxl_base_v1-0",
    modelspec_architecture="stable-diffusion-xl-v1-base/lora",
    scaling_factor=0.13025,
)
