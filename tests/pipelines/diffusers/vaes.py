"""A small VAE of Stable Diffusion's kind."""

from __future__ import annotations

from diffusers import AutoencoderKL


def wide_autoencoder() -> AutoencoderKL:
    """Wide enough for groups of 32, as all of ldm's are."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 32, 64),
        latent_channels=32,
        scaling_factor=1.0,
    )
