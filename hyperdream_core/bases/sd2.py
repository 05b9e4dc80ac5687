"""Stable Diffusion 2.x."""

from __future__ import annotations

from .family import BaseFamily, TextEncoderShape, UNetShape

SD2 = BaseFamily(
    name="sd2",
    title="Stable Diffusion 2.x",
    unet=UNetShape(channels=(320, 640, 1280, 1280), transformer_depth=(1, 1, 1, 0), context_dim=1024),
    # OpenCLIP ViT-H has 24 layers; SD 2.x reads the last but one, and diffusers drops the last.
    text_encoders=(
        TextEncoderShape(
            name="text_encoder", width=1024, layers=23, ldm_prefix="cond_stage_model.model", is_open_clip=True
        ),
    ),
    picture_size=768,
    prediction_types=("v_prediction", "epsilon"),
    ss_base_model_version="sd_v2",
    modelspec_architecture="stable-diffusion-v2-768-v/lora",
)
