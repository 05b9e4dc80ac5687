from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler

from hyperdream_core.miniature.recipe.base_training import new_text_encoder
from hyperdream_core.pipelines.diffusers.diffusers_base import DiffusersBase
from hyperdream_core.pipelines.diffusers.single_file_export import write_single_file
from tests.pipelines.diffusers.vaes import wide_autoencoder


@pytest.fixture(scope="module")
def folder(base: DiffusersBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base as `StableDiffusionPipeline.save_pretrained` writes it."""
    path = tmp_path_factory.mktemp("base")
    base.unet.save_pretrained(path / "unet")
    base.vae.save_pretrained(path / "vae")
    base.text_encoders[0].save_pretrained(path / "text_encoder")
    base.tokenizers[0].save_pretrained(path / "tokenizer")
    DDIMScheduler.from_config(dict(base.scheduler_config)).save_pretrained(path / "scheduler")
    return path


@pytest.fixture(scope="session")
def single_file(make_base: Callable[[int], DiffusersBase], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the miniature's UNet with a VAE as Stable Diffusion's, in float16; it says v."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        vae, text_encoder = wide_autoencoder(), new_text_encoder()
    whole = replace(make_base(2), vae=vae.train(False), text_encoders=(text_encoder.train(False),))
    path = tmp_path_factory.mktemp("file") / "plain.safetensors"
    write_single_file(path, whole)
    return path
