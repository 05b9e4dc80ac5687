"""What the recipe's stages work with: its settings, and what is rendered, solved for or trained before a stage begins.

Whatever needs no training is made here on first use; what a stage has trained is read from its folder.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ...errors import ConfigError
from ...models.hypernetwork import HypernetworkConfig
from ...models.image_encoder import ConvImageEncoder, build_image_encoder
from ...pipelines.diffusers.loading import load_vae
from ...pipelines.training.loop import TrainingConfig
from ...whole_file import whole_file, whole_folder
from ..world.people import SEEDS
from .autoencoder import LATENT_CHANNELS, new_autoencoder, patch_kernel
from .base_training import tokenizer_folder
from .corpus import CHUNK, Corpus, build_corpus
from .patch_codec import PATCH

HYPERNETWORK = HypernetworkConfig(
    family="miniature", down_dim=48, up_dim=96, width=128, image_encoder={"kind": "conv", "image_size": 128}
)
"""The miniature's predictor: rank 1, four passes of two decoder layers. Its bases are a little smaller than usual, so
that a polished identity of rank 3 stays below 100 KB; its encoder sees 8x8 tokens, at twice the base's size."""


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """Sizes and budgets of the miniature."""

    people: int = 20_000
    """People the base and the predictor are trained on."""
    contexts: int = 5
    """Pictures of each of them."""
    pets: int = 1_200
    """Pets the base is trained on."""
    judge_people: int = 3_000
    """Other people, for the judges."""
    judge_contexts: int = 10
    """Pictures of each of those."""
    decoder: TrainingConfig = field(default_factory=lambda: TrainingConfig(steps=2500, learning_rate=1e-3, warmup=30))
    """Training of the VAE's decoder; 16 crops a step and process."""
    base: TrainingConfig = field(default_factory=lambda: TrainingConfig(steps=7000, learning_rate=1e-3))
    """A round's training of text encoder and UNet; 32 latents a step and process."""
    identity_judge: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(steps=700, learning_rate=1.5e-3, warmup=30)
    )
    """Training of the identity judge; 64 people a step and process."""
    attribute_judge: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(steps=400, learning_rate=1.5e-3, warmup=30)
    )
    """Training of the attribute judge; 64 pictures a step and process."""
    encoder: TrainingConfig = field(default_factory=lambda: TrainingConfig(steps=3000, learning_rate=1.5e-3, warmup=50))
    """Pretraining of the predictor's image encoder; 48 pictures a step and process."""
    hypernetwork: TrainingConfig = field(default_factory=lambda: TrainingConfig(steps=4000, learning_rate=1e-3))
    """A round's training of the hypernetwork; 12 people with 3 pictures each a step and process."""
    rounds: int = 2
    """Rounds that train the base and then the hypernetwork, each from where the last one ended. A finished build is
    taken further by raising this number."""
    processes: int = 2
    """Processes that average their gradients; one thread each."""
    seed: int = 0
    """Seed of the hypernetwork's training; other seeds give other predictors for the same base."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigError(f"rounds must be 1 or more, got {self.rounds}")


def quick() -> RecipeConfig:
    """The whole recipe at toy scale, for its tests: seconds, and weights that know nothing."""
    short = TrainingConfig(steps=2, warmup=1, save_every=1)
    stages_ = ("decoder", "base", "identity_judge", "attribute_judge", "encoder", "hypernetwork")
    sizes = {"people": 24, "contexts": 2, "pets": 6, "judge_people": 8, "judge_contexts": 3, "processes": 1}
    return RecipeConfig(**sizes, **dict.fromkeys(stages_, short))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Materials:
    """What lies, or belongs, in a recipe's folder."""

    folder: Path
    config: RecipeConfig
    progress: Any = None

    def corpus(self, name: str) -> Corpus:
        """Render or open one of the corpora: faces, references, pets, judges."""
        c = self.config
        noun, subjects, contexts, seed, references = {
            "faces": ("face", c.people, c.contexts, SEEDS["base"], False),
            "references": ("face", c.people, 1, SEEDS["base"], True),
            "pets": ("pet", c.pets, c.contexts, SEEDS["base"], False),
            "judges": ("face", c.judge_people, c.judge_contexts, SEEDS["judges"], False),
        }[name]
        path = self.folder / "corpus" / f"{name}.npy"
        return build_corpus(path, noun, subjects, contexts, seed, references=references, progress=self.progress)

    def encoder_only(self) -> Any:
        """The VAE with its solved encoder and a linear decoder."""
        path = self.folder / "encoder-only"
        if not path.exists():
            pictures = self.corpus("faces").pictures.reshape(-1, *self.corpus("faces").pictures.shape[2:])
            sample = torch.from_numpy(pictures[:: 1 + len(pictures) // 1024].copy()).float() / 255.0
            torch.manual_seed(0)
            with whole_folder(path) as part:
                new_autoencoder(sample).save_pretrained(part)
        return load_autoencoder(path)

    def autoencoder(self) -> Any:
        """The VAE with its decoder trained."""
        return load_autoencoder(self.folder / "autoencoder")

    def latents(self, name: str) -> np.ndarray:
        """Scaled latents (subjects, contexts, 32, 8, 8) float16 of a corpus."""
        path = self.folder / "latents" / f"{name}.npy"
        if not path.exists():
            corpus, (kernel, bias) = self.corpus(name), patch_kernel(self.encoder_only())
            subjects, contexts = corpus.pictures.shape[:2]
            flat = corpus.pictures.reshape(subjects * contexts, *corpus.pictures.shape[2:])
            codes = np.empty((len(flat), LATENT_CHANNELS, flat.shape[-2] // PATCH, flat.shape[-1] // PATCH), np.float16)
            for start in range(0, len(flat), CHUNK):
                pictures = torch.from_numpy(flat[start : start + CHUNK].copy()).float() / 255.0
                codes[start : start + CHUNK] = F.conv2d(pictures, kernel, bias, stride=PATCH).numpy()
                if self.progress is not None:
                    self.progress(start, len(flat))
            path.parent.mkdir(parents=True, exist_ok=True)
            save_array(path, codes.reshape(subjects, contexts, *codes.shape[1:]))
        return np.load(path)

    def base(self, rounds: int = 0) -> Path:
        """Folder of the base after so many rounds, by default all, in the diffusers folder layout, float32."""
        return self.folder / f"base-{rounds or self.config.rounds}"

    def encoder(self) -> Path:
        """Folder of the predictor's pretrained image encoder."""
        return self.folder / "encoder"

    def features(self) -> tuple[np.ndarray, np.ndarray]:
        """What the frozen image encoder sees in the references: tokens (n, 64, d) and pooled (n, d), float16."""
        paths = [self.folder / "features" / f"{name}.npy" for name in ("tokens", "pooled")]
        if not all(path.exists() for path in paths):
            encoder = load_encoder(self.encoder())
            pictures, found = self.corpus("references").pictures[:, 0], []
            for start in range(0, len(pictures), CHUNK):
                batch = torch.from_numpy(pictures[start : start + CHUNK].copy()).float() / 255.0
                with torch.no_grad():
                    found.append(encoder.features(batch))
            paths[0].parent.mkdir(parents=True, exist_ok=True)
            for path, name in zip(paths, ("tokens", "pooled"), strict=True):
                save_array(path, torch.cat([getattr(one, name) for one in found]).half().numpy())
        return np.load(paths[0], mmap_mode="r"), np.load(paths[1])

    def tokenizer(self) -> Path:
        """CLIP's tokenizer, which is not trained: a copy of the shipped files."""
        target = self.folder / "tokenizer"
        if not target.exists():
            with whole_folder(target) as part:
                shutil.copytree(tokenizer_folder(), part, dirs_exist_ok=True)
        return target


def load_autoencoder(folder: Path) -> Any:
    """A VAE of the recipe, frozen."""
    return load_vae(folder, torch.float32).train(False).requires_grad_(False)


def new_image_encoder() -> ConvImageEncoder:
    """The predictor's image encoder, untrained."""
    encoder = build_image_encoder(HYPERNETWORK.image_encoder)
    assert isinstance(encoder, ConvImageEncoder)
    return encoder


def load_encoder(folder: Path) -> ConvImageEncoder:
    """The pretrained image encoder."""
    from safetensors.torch import load_file

    encoder = new_image_encoder()
    encoder.load_state_dict(load_file(folder / "encoder.safetensors"))
    return encoder.train(False).requires_grad_(False)


def save_array(path: Path, values: np.ndarray) -> None:
    """Write an array as a whole .npy file."""
    with whole_file(path) as part, open(part, "wb") as file:
        np.save(file, values)
