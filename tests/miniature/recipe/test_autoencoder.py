"""The VAE's solved encoder and the decoder it starts with: principal components of patches, exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from hyperdream_core.bundled import bundled_weights
from hyperdream_core.miniature.recipe import autoencoder as vae
from hyperdream_core.miniature.recipe.materials import load_autoencoder
from hyperdream_core.miniature.recipe.patch_codec import MAIN_COMPONENTS, solve_codec
from hyperdream_core.miniature.world.captions import random_context
from hyperdream_core.miniature.world.people import random_people
from hyperdream_core.miniature.world.portrait import render_people
from hyperdream_core.miniature.world.view import random_view


def _pictures(count: int = 40) -> Tensor:
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=(32, 32), mode="bilinear")


@pytest.fixture(scope="module")
def autoencoder() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return vae.new_autoencoder(_pictures()).requires_grad_(False)


def test_latents_have_zero_mean_do_not_correlate_and_the_main_ones_have_unit_variance(autoencoder: Any) -> None:
    latents = vae.encode(autoencoder, _pictures()).permute(1, 0, 2, 3).flatten(1)
    covariance = torch.cov(latents)
    torch.testing.assert_close(latents.mean(1), torch.zeros(vae.LATENT_CHANNELS), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(covariance - covariance.diag().diag(), torch.zeros_like(covariance), atol=1e-3, rtol=0.0)
    torch.testing.assert_close(covariance.diag()[:MAIN_COMPONENTS].mean(), torch.tensor(1.0), atol=1e-3, rtol=0.0)


def test_the_components_reconstruct_as_well_as_a_singular_value_decomposition(autoencoder: Any) -> None:
    pictures = _pictures()
    patches = rearrange(pictures, "n c (h y) (w x) -> (n h w) (c y x)", y=8, x=8)
    codes = vae.encode(autoencoder, pictures).permute(0, 2, 3, 1).reshape(-1, vae.LATENT_CHANNELS)
    centred = patches - patches.mean(0)
    left = centred - codes @ torch.linalg.lstsq(codes, centred).solution
    values = torch.linalg.svdvals(centred)
    torch.testing.assert_close(left.square().sum(), values[vae.LATENT_CHANNELS :].square().sum(), rtol=1e-3, atol=1e-4)


def test_the_decoder_starts_as_the_inverse(autoencoder: Any) -> None:
    pictures = _pictures()
    codec = solve_codec(pictures * 2.0 - 1.0, vae.LATENT_CHANNELS)
    codes = vae.encode(autoencoder, pictures).permute(0, 2, 3, 1).double()
    patches = (codec.mean + codes @ codec.synthesis).float()
    linear = rearrange(patches, "n h w (c y x) -> n c (h y) (w x)", c=3, y=8) / 2.0 + 0.5
    assert vae.psnr(vae.decode(autoencoder, vae.encode(autoencoder, pictures)), linear.clamp(0.0, 1.0)) > 36.0


def test_one_convolution_encodes_as_the_network_does(autoencoder: Any) -> None:
    kernel, bias = vae.patch_kernel(autoencoder)
    pictures = torch.rand(2, 3, 32, 24, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        F.conv2d(pictures, kernel, bias, stride=8), vae.encode(autoencoder, pictures), atol=1e-3, rtol=1e-4
    )


def test_crops_of_latents_and_pictures_show_the_same_place(autoencoder: Any) -> None:
    stored = (torch.rand(3, 3, 96, 96, generator=torch.Generator().manual_seed(2)) * 255).byte()
    latents = vae.encode(autoencoder, stored.float() / 255.0).numpy().astype(np.float32)
    codes, crops = vae.draw_crops(latents, stored.numpy(), 4, torch.Generator().manual_seed(3))
    torch.testing.assert_close(vae.encode(autoencoder, crops), codes, atol=1e-3, rtol=1e-4)


def test_the_shipped_decoder_mends_noisy_latents_that_the_linear_inverse_shows_as_speckle() -> None:
    shipped = load_autoencoder(bundled_weights() / "miniature" / "base" / "vae")
    generator = torch.Generator().manual_seed(4)
    people, context = random_people(24, generator), random_context(24, generator)
    pictures = render_people(people, context, random_view(24, generator))
    latents = vae.encode(shipped, pictures)
    noisy = latents + 0.4 * torch.randn(latents.shape, generator=generator)
    kernel, bias = vae.patch_kernel(shipped)
    patches = torch.linalg.pinv(kernel.flatten(1)) @ (noisy - bias[:, None, None]).flatten(2)
    linear = F.fold(patches, pictures.shape[-2:], kernel_size=8, stride=8).clamp(0.0, 1.0)
    assert vae.psnr(vae.decode(shipped, noisy), pictures) > vae.psnr(linear, pictures) + 2.0
    assert vae.psnr(vae.decode(shipped, latents), pictures) > 27.0
