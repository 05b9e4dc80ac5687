"""The embedded miniature: Stable Diffusion 1.x in topology and names, in small."""

from __future__ import annotations

from .family import BaseFamily, TextEncoderShape, UNetShape

MINIATURE = BaseFamily(
    name="miniature",
    title="the miniature",
    unet=UNetShape(channels=(96, 128, 128, 128), transformer_depth=(1, 1, 1, 0), context_dim=64, layers_per_block=1),
    text_encoders=(
        TextEncoderShape(name="text_encoder", width=64, layers=2, ldm_prefix="cond_stage_model.transformer"),
    ),
    picture_size=64,
    latent_channels=32,
    scaling_factor=1.0,
    prediction_types=("v_prediction", "epsilon"),
    # Hosts know it as what it is shaped like: a small SD 1.x.
    ss_base_model_version="sd_v1",
    modelspec_architecture="stable-diffusion-v1/lora",
)
