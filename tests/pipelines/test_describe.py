"""Reading a caption off a picture with the base's own eyes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyperdream_core.errors import ConfigError
from hyperdream_core.pipelines.describe import DescribeConfig, caption_losses, describe
from hyperdream_core.pipelines.diffusers.diffusers_base import DiffusersBase

CONFIG = DescribeConfig(levels=(0.8, 0.4), draws=1)


def test_the_words_with_the_lowest_loss_are_chosen_the_last_kind_first(base: DiffusersBase, references: Tensor) -> None:
    kinds = {"mood": ("calm", "smiling"), "place": ("", "at the beach", "in a forest")}
    said = describe(base, references, kinds, "a face", CONFIG)
    for row, text in enumerate(said):
        picture = references[row : row + 1]
        places = ["a face", "a face, at the beach", "a face, in a forest"]
        place = places[int(caption_losses(base, picture, places, CONFIG).argmin())].removeprefix("a face")
        moods = [f"a face, {mood}{place}" for mood in kinds["mood"]]
        best = moods[int(caption_losses(base, picture, moods, CONFIG).argmin())]
        assert f"a face, {text}" == best


def test_losses_do_not_depend_on_company(base: DiffusersBase, references: Tensor) -> None:
    captions = ["a face", "a face, smiling", "a pet"]
    together = caption_losses(base, references, captions, CONFIG)
    small = DescribeConfig(levels=CONFIG.levels, draws=1, batch=1)
    alone = torch.cat([caption_losses(base, references[1:], [caption], small) for caption in captions], 1)
    assert together.shape == (2, 3)
    torch.testing.assert_close(together[1:], alone)


def test_levels_outside_of_noise_are_refused() -> None:
    with pytest.raises(ConfigError, match="levels must lie between 0 and 1"):
        DescribeConfig(levels=(0.5, 1.0))
