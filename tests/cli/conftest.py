from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hyperdream_core.cli import main

# torch and diffusers are imported where they are needed: half of these tests are about not loading them.
if TYPE_CHECKING:
    from hyperdream_core.identity import Identity

TOKENIZER = Path(__file__).parents[2] / "weights" / "miniature" / "base" / "tokenizer"


@dataclass(frozen=True)
class Ran:
    """What one command did."""

    code: int
    out: str
    error: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run one command in this process."""

    def run(*words: object) -> Ran:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture
def refused(run: Callable[..., Ran]) -> Callable[..., str]:
    """Run a command that must be refused in one sentence, and return that sentence."""

    def refused(*words: object) -> str:
        ran = run(*words)
        said = [line for line in ran.error.splitlines() if line.startswith("hyperdream: ")]
        assert ran.code == 1 and ran.out == "" and len(said) == 1, ran
        assert "Traceback" not in ran.error
        return said[0]

    return refused


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature as a diffusers folder, with random weights and a very small VAE."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel

    from hyperdream_core.bases import get_base
    from hyperdream_core.miniature.recipe.base_training import SCHEDULE, new_unet

    folder = tmp_path_factory.mktemp("base")
    family = get_base("miniature")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        new_unet().save_pretrained(folder / "unet")
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=family.latent_channels,
            scaling_factor=0.5,
        ).save_pretrained(folder / "vae")
        config = CLIPTextConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    DDIMScheduler(**SCHEDULE).save_pretrained(folder / "scheduler")
    shutil.copytree(TOKENIZER, folder / "tokenizer")
    return folder


@pytest.fixture(scope="session")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from hyperdream_core.models.hypernetwork import Hypernetwork, HypernetworkConfig
    from hyperdream_core.pipelines.predictors.hypernetwork_predictor import save_hypernetwork

    path = tmp_path_factory.mktemp("predictor") / "hypernetwork.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = {"kind": "conv", "channels": [8, 8, 8, 8], "width": 16, "image_size": 32}
        network = Hypernetwork(HypernetworkConfig(family="miniature", width=16, heads=2, image_encoder=encoder))
    save_hypernetwork(path, network, training={"steps": 0})
    return path


def random_identity(family: str = "miniature") -> Identity:
    import torch

    from hyperdream_core.bases import get_base
    from hyperdream_core.identity import Identity
    from hyperdream_core.ops.lidb import LidbCoefficients, basis_sizes

    generator = torch.Generator().manual_seed(3)
    coefficients = {}
    for layer in get_base(family).layers("attention"):
        p, a = basis_sizes(layer.in_features, layer.out_features)
        down, up = torch.randn(1, p, generator=generator), torch.randn(a, 1, generator=generator)
        coefficients[layer.name] = LidbCoefficients(down / 10, up / 10)
    return Identity(family=family, target_set="attention", rank=1, coefficients=coefficients)


@pytest.fixture(scope="session")
def identity_of() -> Callable[[str], Identity]:
    return random_identity


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    from hyperdream_core.formats.identity_file import write_identity

    write_identity(tmp_path / "sofia.safetensors", random_identity())
    return tmp_path / "sofia.safetensors"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    import numpy as np
    from PIL import Image

    pixels = np.random.RandomState(0).randint(0, 255, (48, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "sofia.png")
    return tmp_path / "sofia.png"
