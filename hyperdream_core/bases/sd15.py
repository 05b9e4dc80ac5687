"""Stable Diffusion 1.x."""

from __future__ import annotations

from .family import BaseFamily, TextEncoderShape, UNetShape

SD15 = BaseFamily(
    name="sd15",
    title="Stable Diffusion 1.x",
    unet=UNetShape(channels=(320, 640, 1280, 1280), transformer_depth=(1, 1, 1, 0), context_dim=768),
    text_encoders=(
        TextEncoderShape(name="text_encoder", width=768, layers=12, ldm_prefix="cond_stage_model.transformer"),
    ),
    picture_size=512,
    prediction_types=("epsilon", "v_prediction"),
    ss_base_model_version="sd_v1",
    modelspec_architecture="stable-diffusion-v1/lora",
)
