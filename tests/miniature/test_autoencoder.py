"""The VAE's solved encoder: principal components of patches, exactly."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from hyperdream_core.miniature import autoencoder as vae


def _pictures(count: int = 40) -> torch.Tensor:
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=(32, 32), mode="bilinear")


def test_latents_have_zero_mean_do_not_correlate_and_the_main_ones_have_unit_variance() -> None:
    autoencoder = vae.new_autoencoder(width=48)
    vae.solve_encoder_(autoencoder, _pictures())
    latents = vae.encode(autoencoder, _pictures()).permute(1, 0, 2, 3).flatten(1)
    covariance = torch.cov(latents)
    torch.testing.assert_close(latents.mean(1), torch.zeros(vae.LATENT_CHANNELS), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(covariance - covariance.diag().diag(), torch.zeros_like(covariance), atol=1e-3, rtol=0.0)
    torch.testing.assert_close(covariance.diag()[: vae.MAIN_CHANNELS].mean(), torch.tensor(1.0), atol=1e-3, rtol=0.0)


def test_the_components_reconstruct_as_well_as_a_singular_value_decomposition() -> None:
    pictures = _pictures()
    autoencoder = vae.new_autoencoder(width=48)
    vae.solve_encoder_(autoencoder, pictures)
    patches = pictures.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(-1, 192)
    codes = vae.encode(autoencoder, pictures).permute(0, 2, 3, 1).reshape(-1, vae.LATENT_CHANNELS)
    centred = patches - patches.mean(0)
    left = centred - codes @ torch.linalg.lstsq(codes, centred).solution
    values = torch.linalg.svdvals(centred)
    torch.testing.assert_close(left.square().sum(), values[vae.LATENT_CHANNELS :].square().sum(), rtol=1e-3, atol=1e-4)


def test_one_convolution_encodes_as_the_network_does() -> None:
    autoencoder = vae.new_autoencoder()
    vae.solve_encoder_(autoencoder, _pictures())
    kernel, bias = vae.patch_kernel(autoencoder)
    pictures = torch.rand(2, 3, 32, 24, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        F.conv2d(pictures, kernel, bias, stride=8), vae.encode(autoencoder, pictures), atol=1e-4, rtol=1e-4
    )


def test_crops_of_latents_and_pictures_show_the_same_place() -> None:
    autoencoder = vae.new_autoencoder()
    vae.solve_encoder_(autoencoder, _pictures())
    stored = (torch.rand(3, 3, 96, 96, generator=torch.Generator().manual_seed(2)) * 255).byte()
    latents = vae.encode(autoencoder, stored.float() / 255.0).numpy().astype(np.float32)
    codes, crops = vae.draw_crops(latents, stored.numpy(), 4, torch.Generator().manual_seed(3))
    torch.testing.assert_close(vae.encode(autoencoder, crops), codes, atol=1e-4, rtol=1e-4)
