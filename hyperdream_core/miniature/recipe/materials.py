"""What the recipe's stages work with: its settings, and what is rendered, solved for or trained before a stage begins.

Whatever needs no training is made here on first use; what a stage has trained is read from its folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ...bases.miniature import MINIATURE
from ...config import config_to_json
from ...errors import ConfigError
from ...models.hypernetwork import HypernetworkConfig
from ...models.image_encoder import ConvImageEncoder, build_image_encoder
from ...pipelines.diffusers.folder import load_vae
from ...pipelines.training.checkpoint import steps_of
from ...pipelines.training.loop import TrainingConfig
from ..world.people import SEEDS
from .autoencoder import LATENT_CHANNELS, new_autoencoder, patch_kernel
from .base_training import tokenizer_folder
from .corpus import CHUNK, Corpus, build_corpus
from .patch_codec import PATCH
from .results import Result, Say, no_say

_CODES = 2 * LATENT_CHANNELS * (MINIATURE.picture_size // PATCH) ** 2
_FEATURES = 17_000
_TRAINED, _ROUND, _CHECKPOINT = 410_000_000, 71_000_000, 210_000_000
"""Bytes of a picture's latents, of what the image encoder sees in one, and of networks: all that are trained once with
their checkpoints, base and predictor of a round, and the largest checkpoint."""
_MODEL = ("config.json", "diffusion_pytorch_model.safetensors")
_PARTS = {"unet": _MODEL, "vae": _MODEL, "text_encoder": ("config.json", "model.safetensors"),
          "tokenizer": ("tokenizer_config.json",), "scheduler": ("scheduler_config.json",)}  # fmt: skip
_PEOPLE, _DATA = ("people", "contexts"), ("people", "contexts", "pets", "processes")
_KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # Kind of result -> settings that decide it, and files of its folder; what differs in rounds or seed has it in its
    # name.
    "tokenizer": ((), ("tokenizer_config.json",)),
    "encoder-only": (_PEOPLE, _MODEL),
    "latents": ((*_PEOPLE, "pets"), ()),
    "autoencoder": ((*_DATA, "decoder"), _MODEL),
    "base": (
        (*_DATA, "base"),
        ("model_index.json", *(f"{part}/{name}" for part, names in _PARTS.items() for name in names)),
    ),
    "judges": (
        (*_DATA, "decoder", "judge_people", "judge_contexts", "identity_judge", "attribute_judge"),
        ("identity.safetensors", "attributes.safetensors"),
    ),
    "encoder": ((*_PEOPLE, "processes", "encoder"), ("encoder.safetensors",)),
    "features": ((*_PEOPLE, "processes", "encoder"), ()),
    "hypernetwork": ((*_DATA, "base", "encoder", "hypernetwork", "seed"), ("hypernetwork.safetensors",)),
}

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
    say: Say = no_say
    """told of what is made anew, or taken without a record"""

    def settings(self, kind: str) -> Mapping[str, Any]:
        """What decides a kind of result, as JSON values."""
        config = config_to_json(self.config)
        chosen = {name: config[name] for name in _KINDS[kind][0]}
        for value in chosen.values():
            if isinstance(value, dict):
                value.pop("save_every", None)
        return chosen

    def result(self, name: str, shape: tuple[int, ...] = ()) -> Result:
        """The place of a result: `KIND`, `KIND-ROUNDS` or, of an array, `KIND/NAME.npy`."""
        kind = next(kind for kind in sorted(_KINDS, key=len, reverse=True) if name.startswith(kind))
        return Result(self.folder / name, self.settings(kind), _KINDS[kind][1], shape, self.say)

    def checkpoint(self, name: str, steps: int, rounds: int = 1) -> Path:
        """A training's checkpoint; one of its own for a round that is made anew after a later one has begun."""
        path = self.folder / f"{name}.checkpoint.safetensors"
        return path if steps_of(path) <= steps else path.with_name(f"{name}-{rounds}.checkpoint.safetensors")

    def room(self) -> int:
        """Bytes that are still to be written, about."""
        c = self.config
        picture = 3 * MINIATURE.picture_size**2
        people = (c.contexts + 1) * picture + c.contexts * _CODES + _FEATURES
        whole = (
            c.people * people + c.pets * c.contexts * (picture + _CODES) + c.judge_people * c.judge_contexts * picture
        )
        whole += _TRAINED + c.rounds * _ROUND
        there = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        # Only whoever trains on writes a checkpoint beside the one before.
        beside = 0 if (self.folder / f"base-{c.rounds}").exists() else _CHECKPOINT
        return max(0, whole - there) + beside

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
        return build_corpus(
            path, noun, subjects, contexts, seed, references=references, progress=self.progress, say=self.say
        )

    def encoder_only(self) -> Any:
        """The VAE with its solved encoder and a linear decoder."""
        result = self.result("encoder-only")
        if not result.is_there():
            pictures = self.corpus("faces").pictures.reshape(-1, *self.corpus("faces").pictures.shape[2:])
            sample = torch.from_numpy(pictures[:: 1 + len(pictures) // 1024].copy()).float() / 255.0
            torch.manual_seed(0)
            with result.made() as part:
                new_autoencoder(sample).save_pretrained(part)
        return load_autoencoder(result.path)

    def autoencoder(self) -> Any:
        """The VAE with its decoder trained."""
        return load_autoencoder(self.folder / "autoencoder")

    def latents(self, name: str) -> np.ndarray:
        """Scaled latents (subjects, contexts, 32, 8, 8) float16 of a corpus."""
        c = self.config
        shape = (c.pets if name == "pets" else c.people, c.contexts, LATENT_CHANNELS)
        result = self.result(f"latents/{name}.npy", shape)
        if not result.is_there():
            corpus, (kernel, bias) = self.corpus(name), patch_kernel(self.encoder_only())
            subjects, contexts = corpus.pictures.shape[:2]
            flat = corpus.pictures.reshape(subjects * contexts, *corpus.pictures.shape[2:])
            codes = np.empty((len(flat), LATENT_CHANNELS, flat.shape[-2] // PATCH, flat.shape[-1] // PATCH), np.float16)
            for start in range(0, len(flat), CHUNK):
                pictures = torch.from_numpy(flat[start : start + CHUNK].copy()).float() / 255.0
                codes[start : start + CHUNK] = F.conv2d(pictures, kernel, bias, stride=PATCH).numpy()
                if self.progress is not None:
                    self.progress(start, len(flat))
            save_array(result, codes.reshape(subjects, contexts, *codes.shape[1:]))
        return np.load(result.path)

    def base(self, rounds: int = 0) -> Path:
        """Folder of the base after so many rounds, by default all, in the diffusers folder layout, float32."""
        return self.folder / f"base-{rounds or self.config.rounds}"

    def encoder(self) -> Path:
        """Folder of the predictor's pretrained image encoder."""
        return self.folder / "encoder"

    def features(self) -> tuple[np.ndarray, np.ndarray]:
        """What the frozen image encoder sees in the references: tokens (n, 64, d) and pooled (n, d), float16."""
        results = [self.result(f"features/{name}.npy", (self.config.people,)) for name in ("tokens", "pooled")]
        whole = [result.is_there() for result in results]
        if not all(whole):
            encoder = load_encoder(self.encoder())
            pictures, found = self.corpus("references").pictures[:, 0], []
            for start in range(0, len(pictures), CHUNK):
                batch = torch.from_numpy(pictures[start : start + CHUNK].copy()).float() / 255.0
                with torch.no_grad():
                    found.append(encoder.features(batch))
            for result, name in zip(results, ("tokens", "pooled"), strict=True):
                save_array(result, torch.cat([getattr(one, name) for one in found]).half().numpy())
        return np.load(results[0].path, mmap_mode="r"), np.load(results[1].path)

    def tokenizer(self) -> Path:
        """CLIP's tokenizer, which is not trained: a copy of the shipped files."""
        result = self.result("tokenizer")
        if not result.is_there():
            with result.made() as part:
                shutil.copytree(tokenizer_folder(), part, dirs_exist_ok=True)
        return result.path


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


def save_array(result: Result, values: np.ndarray) -> None:
    """Write an array as a whole .npy file."""
    with result.made() as part, open(part, "wb") as file:
        np.save(file, values)
