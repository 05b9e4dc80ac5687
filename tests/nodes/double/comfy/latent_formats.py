"""The scale of latents between VAE and UNet."""

from __future__ import annotations


class LatentFormat:
    scale_factor = 1.0
