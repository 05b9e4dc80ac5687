"""The VAE of our own against diffusers' AutoencoderDC, whose weights it takes."""

from __future__ import annotations

import pytest
import torch

from hyperdream_core.bundled import bundled_weights
from hyperdream_core.models.small_autoencoder import LikeDiffusers, SmallAutoencoder
from hyperdream_core.pipelines.diffusers.folder import load_vae


def test_it_does_what_diffusers_does_at_any_size() -> None:
    from diffusers import AutoencoderDC

    settings = {
        "latent_channels": 8,
        "encoder_block_out_channels": (3, 12, 24),
        "encoder_layers_per_block": (1, 2, 0),
        "encoder_out_shortcut": False,
        "decoder_block_out_channels": (4, 8, 16),
        "decoder_layers_per_block": (1, 2, 3),
    }
    no_attention = {f"{part}_qkv_multiscales": ((),) * 3 for part in ("encoder", "decoder")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = AutoencoderDC(**settings, **no_attention)
        for parameter in theirs.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        pictures = torch.rand(2, 3, 12, 20) * 2 - 1
    ours = SmallAutoencoder.from_settings(settings)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    with torch.no_grad():
        latents = theirs.encode(pictures).latent
        torch.testing.assert_close(ours.encode(pictures), latents, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.decode(latents), theirs.decode(latents).sample, atol=1e-5, rtol=1e-5)
    assert latents.shape == (2, 8, 3, 5)


def test_the_miniatures_is_read_where_diffusers_does_not_know_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers

    folder = bundled_weights() / "miniature" / "base" / "vae"
    theirs = load_vae(folder, torch.float32)
    assert isinstance(theirs, diffusers.AutoencoderDC)
    monkeypatch.delitem(vars(diffusers), "AutoencoderDC", raising=False)
    monkeypatch.delitem(diffusers._class_to_module, "AutoencoderDC")
    ours = load_vae(folder, torch.float32)
    assert isinstance(ours, LikeDiffusers)
    pictures = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = ours.encode(pictures)["latent"]
        torch.testing.assert_close(latents, theirs.encode(pictures).latent, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.decode(latents).sample, theirs.decode(latents).sample, atol=1e-4, rtol=1e-4)
    assert ours.config.scaling_factor == theirs.config.scaling_factor


def test_a_diffusers_that_would_add_a_shortcut_of_its_own_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers

    class OfRelease32:
        def __init__(self, latent_channels: int = 32) -> None:
            raise AssertionError("it would encode other latents")

    monkeypatch.setattr(diffusers, "AutoencoderDC", OfRelease32)
    assert isinstance(load_vae(bundled_weights() / "miniature" / "base" / "vae", torch.float32), LikeDiffusers)
