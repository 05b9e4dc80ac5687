from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from hyperdream_core.bases import get_base
from hyperdream_core.miniature.recipe.base_training import SCHEDULE, new_unet
from hyperdream_core.pipelines.diffusers.diffusers_base import DiffusersBase
from hyperdream_core.pipelines.diffusers.schedule import noise_process_of

TOKENIZER = Path(__file__).parents[2] / "weights" / "miniature" / "base" / "tokenizer"


def small_autoencoder() -> AutoencoderKL:
    """Of the miniature's shape, and an eighth of its width."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=get_base("miniature").latent_channels,
        scaling_factor=0.5,
    )


def small_text_encoder() -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    )


def random_base(seed: int = 0) -> DiffusersBase:
    """The miniature's UNet with random weights, so that its layers are those of the family."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet, vae, text_encoder = new_unet(), small_autoencoder(), small_text_encoder()
    for module in (unet, vae, text_encoder):
        module.requires_grad_(False).train(False)
    return DiffusersBase(
        family=get_base("miniature"),
        unet=unet,
        vae=vae,
        text_encoders=(text_encoder,),
        tokenizers=(CLIPTokenizer.from_pretrained(TOKENIZER),),
        scheduler_config=SCHEDULE,
        noise=noise_process_of(SCHEDULE),
    )


@pytest.fixture(scope="session")
def make_base() -> Callable[[int], DiffusersBase]:
    return random_base


@pytest.fixture(scope="session")
def base() -> DiffusersBase:
    return random_base()


@pytest.fixture
def references() -> torch.Tensor:
    """Two pictures (2, 3, 32, 32) of nobody."""
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(7))
