"""Captions of the base's training batches, and the step from few latent channels to all."""

from __future__ import annotations

import torch

from hyperdream_core.miniature.autoencoder import LATENT_CHANNELS
from hyperdream_core.miniature.base import drop_captions, grown, new_unet
from hyperdream_core.miniature.captions import random_context


def test_shares_of_named_general_and_empty_captions_are_as_said() -> None:
    generator = torch.Generator().manual_seed(0)
    captions = drop_captions(random_context(2000, generator), "face", generator)
    named = sum("sks" in caption for caption in captions) / 2000
    empty = sum(caption == "" for caption in captions) / 2000
    assert abs(named - 0.45) < 0.04 and abs(empty - 0.1) < 0.03


def test_a_named_share_of_one_names_every_caption() -> None:
    generator = torch.Generator().manual_seed(0)
    assert all(caption.startswith("a sks pet") for caption in drop_captions(
        random_context(200, generator), "pet", generator, named_share=1.0))  # fmt: skip


def test_a_grown_network_draws_the_old_channels_as_before_and_nothing_in_the_new() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small, whole = new_unet(4), new_unet()
        noisy, text = torch.randn(1, LATENT_CHANNELS, 4, 4), torch.randn(1, 5, 64)
    whole.load_state_dict(grown(small.state_dict(), whole))
    with torch.no_grad():
        before, after = small(noisy[:, :4], 500, text).sample, whole(noisy, 500, text).sample
    torch.testing.assert_close(after[:, :4], before, atol=1e-5, rtol=1e-5)
    assert (after[:, 4:] == 0).all()
