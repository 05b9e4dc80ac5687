"""The miniature's VAE: `diffusers.AutoencoderDC` of factor 8 with 32 latent channels and a linear encoder.

The encoder is solved for (`patch_codec`), so the latents are known in seconds, and the base and the decoder can be
trained independently of each other. The decoder starts as the linear inverse and learns to see a patch's neighbours
too, from noisy latents, so that it mends the base's small errors instead of showing them as speckle. Its
depth-to-space steps know where in a patch a pixel lies; a decoder that upsamples by repetition does not, and ended
below the linear inverse.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...bases.miniature import MINIATURE
from .patch_codec import PATCH, solve_codec, write_decoder_, write_encoder_

LATENT_CHANNELS = MINIATURE.latent_channels

CROP = 8
"""Edge of a training crop in latent positions."""


def new_autoencoder(pictures: Tensor) -> Any:
    """A `diffusers.AutoencoderDC` that codes patches of these pictures (n, 3, h, w), 0..1, linearly, both ways."""
    from diffusers import AutoencoderDC

    no_attention = ((),) * 4
    model = AutoencoderDC(
        latent_channels=LATENT_CHANNELS,
        encoder_block_out_channels=(3, 12, 48, 192),
        encoder_layers_per_block=(1, 1, 1, 0),
        encoder_qkv_multiscales=no_attention,
        encoder_out_shortcut=False,
        decoder_block_out_channels=(16, 32, 64, 128),
        decoder_layers_per_block=(2, 2, 2, 2),
        decoder_qkv_multiscales=no_attention,
        scaling_factor=MINIATURE.scaling_factor,
    )
    # Asked for by `StableDiffusionPipeline`, which counts them to know the factor.
    model.register_to_config(block_out_channels=(16, 32, 64, 128))
    codec = solve_codec(pictures * 2.0 - 1.0, LATENT_CHANNELS)
    write_encoder_(model.encoder, codec)
    write_decoder_(model.decoder, codec)
    return model


class DecoderObjective(nn.Module):
    """Reconstruction of crops from noisy latents: absolute, squared and edge error.

    Args:
        autoencoder: whose decoder is trained.
        noise: largest standard deviation of the noise; each crop has its own, down to 0.
    """

    def __init__(self, autoencoder: Any, noise: float = 0.5) -> None:
        super().__init__()
        self.decoder, self.noise = autoencoder.decoder, noise

    def forward(self, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        """Loss of scaled latents (b, c, h, w) and the pictures (b, 3, 8h, 8w) in 0..1 they stand for."""
        latents, pictures = batch
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        level = self.noise * torch.rand(len(latents), 1, 1, 1, generator=generator).to(latents)
        got, wanted = self.decoder(latents + level * noise), pictures * 2.0 - 1.0
        error = (got - wanted).abs().mean() + 2.0 * F.mse_loss(got, wanted)
        for axis in (-1, -2):
            error = error + (got.diff(dim=axis) - wanted.diff(dim=axis)).abs().mean()
        return error


def draw_crops(
    latents: np.ndarray, pictures: np.ndarray, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random crops: scaled latents (count, c, 8, 8) and their pictures (count, 3, 64, 64) in 0..1.

    Args:
        latents: (n, c, h, w).
        pictures: (n, 3, 8h, 8w) uint8.
        count: crops; the middle, where faces are, comes more often.
        generator: of this step.
    """
    index = torch.randint(len(latents), (count,), generator=generator)
    # The mean of two uniform draws: a tent over the middle of the picture.
    corner = torch.rand(count, 2, 2, generator=generator).mean(-1) * (latents.shape[-1] - CROP + 1)
    codes, crops = [], []
    for i, (top, left) in zip(index.tolist(), corner.long().tolist(), strict=True):
        codes.append(latents[i, :, top : top + CROP, left : left + CROP])
        rows, columns = (slice(start * PATCH, (start + CROP) * PATCH) for start in (top, left))
        crops.append(pictures[i, :, rows, columns])
    return torch.from_numpy(np.stack(codes)).float(), torch.from_numpy(np.stack(crops)).float() / 255.0


@torch.no_grad()
def encode(autoencoder: Any, pictures: Tensor) -> Tensor:
    """Scaled latents (b, c, h/8, w/8) of pictures (b, 3, h, w) in 0..1."""
    return autoencoder.encode(pictures * 2.0 - 1.0).latent


@torch.no_grad()
def patch_kernel(autoencoder: Any) -> tuple[Tensor, Tensor]:
    """The linear encoder as one convolution of stride 8, twenty times as fast: kernel (c, 3, 8, 8) and bias (c,)."""
    units = torch.eye(3 * PATCH * PATCH).reshape(-1, 3, PATCH, PATCH)
    bias = encode(autoencoder, torch.zeros(1, 3, PATCH, PATCH))
    kernel = (encode(autoencoder, units) - bias).reshape(len(units), -1).T
    return kernel.reshape(-1, 3, PATCH, PATCH).contiguous(), bias.reshape(-1)


@torch.no_grad()
def decode(autoencoder: Any, latents: Tensor) -> Tensor:
    """Pictures (b, 3, 8h, 8w) in 0..1 of scaled latents (b, c, h, w)."""
    return (autoencoder.decode(latents).sample * 0.5 + 0.5).clamp(0.0, 1.0)


def psnr(got: Tensor, wanted: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in 0..1."""
    return float(-10.0 * torch.log10(F.mse_loss(got, wanted)))
