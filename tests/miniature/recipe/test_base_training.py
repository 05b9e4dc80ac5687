"""Captions of the base's training batches."""

from __future__ import annotations

import torch

from hyperdream_core.miniature.recipe.base_training import drop_captions
from hyperdream_core.miniature.world.captions import random_context


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
