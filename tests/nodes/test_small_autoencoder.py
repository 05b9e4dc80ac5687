"""The VAE of our own against diffusers' AutoencoderDC, whose weights it takes."""

from __future__ import annotations

import torch

from .pack import load_pack_module


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
    ours = load_pack_module("nodes.small_autoencoder").SmallAutoencoder.from_settings(settings)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    with torch.no_grad():
        latents = theirs.encode(pictures).latent
        torch.testing.assert_close(ours.encode(pictures), latents, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.decode(latents), theirs.decode(latents).sample, atol=1e-5, rtol=1e-5)
    assert latents.shape == (2, 8, 3, 5)
