"""What each stage of the recipe trains: run in every process that `launch` starts; the main one writes the result.

A result is written whole, with its record, so that it is there only when its stage is done.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...models.hypernetwork import Hypernetwork
from ...models.image_encoder import ImageFeatures, RegressionHead
from ...pipelines.diffusers.loading import load_base
from ...pipelines.predictors.hypernetwork_predictor import save_hypernetwork
from ...pipelines.training.loop import TrainingConfig, is_main_process, train
from ...pipelines.training.train_hypernetwork import HypernetworkBatch, HypernetworkObjective
from ..trial.judges import AttributeJudge, AttributeObjective, IdentityJudge, IdentityObjective
from ..world.captions import Context
from . import autoencoder as vae
from .base_training import SCHEDULE, BaseObjective, draw_base_batch, drop_captions, new_text_encoder, new_unet
from .materials import HYPERNETWORK, Materials, load_encoder, new_image_encoder


def train_decoder(recipe: Materials) -> None:
    """The VAE's decoder, on crops of faces and pets."""
    torch.set_num_threads(1)
    sources = []
    for name in ("faces", "pets"):
        pictures, latents = recipe.corpus(name).pictures, recipe.latents(name)
        sources.append((latents.reshape(-1, *latents.shape[2:]), pictures.reshape(-1, *pictures.shape[2:])))
    model = recipe.encoder_only()
    model.decoder.requires_grad_(True)

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        kind = int(torch.rand(1, generator=generator) < 0.15)
        return vae.draw_crops(*sources[kind], 16, generator)

    _train(recipe, "decoder", "autoencoder", vae.DecoderObjective(model), draw, recipe.config.decoder)
    if is_main_process():
        with recipe.result("autoencoder").made() as part:
            model.save_pretrained(part)


def _train(
    recipe: Materials, name: str, kind: str, objective: nn.Module, draw: Any, config: TrainingConfig, rounds: int = 1
) -> list[float]:
    """Train with the checkpoint of that name, of a result of that kind."""
    checkpoint = recipe.checkpoint(name, rounds * config.steps, rounds)
    return train(
        objective, draw, config, checkpoint, recipe.progress, cycles=rounds, made_by={"recipe": recipe.settings(kind)}
    )


def train_base(recipe: Materials, rounds: int) -> None:
    """Text encoder and UNet up to a round, on latents and captions of faces and pets; saved as a diffusers pipeline."""
    from transformers import CLIPTokenizer

    torch.set_num_threads(1)
    sources = [(recipe.corpus(kind), recipe.latents(kind), noun) for kind, noun in (("faces", "face"), ("pets", "pet"))]
    torch.manual_seed(0)
    unet, text_encoder = new_unet(), new_text_encoder()
    tokenizer = CLIPTokenizer.from_pretrained(recipe.tokenizer())

    def draw(generator: torch.Generator) -> Any:
        return draw_base_batch(sources, 32, generator)

    objective = BaseObjective(unet, text_encoder, tokenizer)
    _train(recipe, "base", "base", objective, draw, recipe.config.base, rounds)
    if is_main_process():
        vae_ = recipe.encoder_only()
        with recipe.result(f"base-{rounds}").made() as part:
            save_pipeline(part, vae_, unet, text_encoder, tokenizer)


def save_pipeline(path: Path, vae: Any, unet: Any, text_encoder: Any, tokenizer: Any) -> None:
    """Write a base as a `StableDiffusionPipeline` folder."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder.train(False),
        tokenizer=tokenizer,
        unet=unet.train(False),
        scheduler=DDIMScheduler(**SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(path, safe_serialization=True)


def train_judges(recipe: Materials) -> None:
    """Identity and attribute judge, on people of their own, some pictures seen through the VAE."""
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    corpus, autoencoder = recipe.corpus("judges"), recipe.autoencoder()
    torch.manual_seed(0)
    identity, attributes = IdentityJudge(), AttributeJudge()

    def draw_pairs(generator: torch.Generator) -> Tensor:
        subject = torch.randint(len(corpus.pictures), (64,), generator=generator)
        first = torch.randint(corpus.contexts, (64,), generator=generator)
        other = (first + torch.randint(1, corpus.contexts, (64,), generator=generator)) % corpus.contexts
        pictures = torch.stack([corpus.take(subject, first), corpus.take(subject, other)], 1).flatten(0, 1)
        return _through(autoencoder, pictures, generator).unflatten(0, (-1, 2))

    def draw_pictures(generator: torch.Generator) -> tuple[Tensor, Context]:
        subject = torch.randint(len(corpus.pictures), (64,), generator=generator)
        place = torch.randint(corpus.contexts, (64,), generator=generator)
        pictures = _through(autoencoder, corpus.take(subject, place), generator)
        return pictures, corpus.context[subject * corpus.contexts + place]

    c = recipe.config
    _train(recipe, "identity_judge", "judges", IdentityObjective(identity), draw_pairs, c.identity_judge)
    _train(recipe, "attribute_judge", "judges", AttributeObjective(attributes), draw_pictures, c.attribute_judge)

    def save(path: Path) -> None:
        save_file(identity.state_dict(), path / "identity.safetensors")
        save_file(attributes.state_dict(), path / "attributes.safetensors")

    if is_main_process():
        with recipe.result("judges").made() as part:
            save(part)


def _through(autoencoder: Any, pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Every fourth picture seen through the VAE with a little latent noise, so that its texture is no surprise."""
    with torch.no_grad():
        codes = vae.encode(autoencoder, pictures[::4])
        codes = codes + 0.12 * torch.randn(codes.shape, generator=generator)
        pictures[::4] = vae.decode(autoencoder, codes)
    return pictures


def train_encoder(recipe: Materials) -> None:
    """The predictor's image encoder, taught to read the generator's identity parameters off base people's pictures."""
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    faces, references = recipe.corpus("faces"), recipe.corpus("references")
    targets = references.subjects.targets()  # type: ignore[union-attr]
    torch.manual_seed(0)
    encoder = new_image_encoder()
    objective = EncoderObjective(RegressionHead(encoder, targets.shape[1]))

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        subject = torch.randint(len(targets), (48,), generator=generator)
        place = torch.randint(faces.contexts, (16,), generator=generator)
        plain = references.take(subject[:32], torch.zeros(32, dtype=torch.long))
        return torch.cat([plain, faces.take(subject[32:], place)]), targets[subject]

    _train(recipe, "encoder", "encoder", objective, draw, recipe.config.encoder)

    def save(path: Path) -> None:
        save_file({name: t.contiguous() for name, t in encoder.state_dict().items()}, path / "encoder.safetensors")

    if is_main_process():
        with recipe.result("encoder").made() as part:
            save(part)


def train_hypernetwork(recipe: Materials, rounds: int) -> None:
    """The predictor up to a round, end to end through the frozen base: reference in, another picture denoised.

    One row in eight has an empty caption and shows somebody else: the adapter learns to leave the unconditional
    prediction alone, so that classifier-free guidance amplifies the identity together with the prompt.
    """
    torch.set_num_threads(1)
    base = load_base(recipe.base(rounds))
    for network in base.modules():
        network.requires_grad_(False)
    corpus, latents = recipe.corpus("faces"), recipe.latents("faces")
    tokens, pooled = recipe.features()
    torch.manual_seed(recipe.config.seed)
    hypernetwork = Hypernetwork(HYPERNETWORK)
    hypernetwork.encoder.load_state_dict(load_encoder(recipe.encoder()).state_dict())
    objective = HypernetworkObjective(hypernetwork, base, noise_power=1.5)
    subjects, pictures = 12, 3

    def draw(generator: torch.Generator) -> HypernetworkBatch:
        subject = torch.randint(len(latents), (subjects,), generator=generator)
        shown = subject.repeat_interleave(pictures)
        anybody = torch.rand(len(shown), generator=generator) < 0.125
        shown = torch.where(anybody, torch.randint(len(latents), shown.shape, generator=generator), shown)
        place = torch.randint(corpus.contexts, shown.shape, generator=generator)
        captions = drop_captions(corpus.context[shown * corpus.contexts + place], "face", generator, named_share=1.0)
        captions = ["" if empty else caption for empty, caption in zip(anybody.tolist(), captions, strict=True)]
        with torch.no_grad():
            text = base.encode_prompt(captions)
        features = ImageFeatures(*(torch.from_numpy(f[subject.numpy()].astype(np.float32)) for f in (tokens, pooled)))
        codes = torch.from_numpy(latents[shown.numpy(), place.numpy()].astype(np.float32))
        return HypernetworkBatch(features, codes, text)

    name = f"hypernetwork-{recipe.config.seed}"
    training = replace(recipe.config.hypernetwork, seed=recipe.config.seed + 10)
    losses = _train(recipe, name, "hypernetwork", objective, draw, training, rounds)

    def save(path: Path) -> None:
        steps = training.steps * rounds
        facts: dict[str, float] = {"steps": steps, "seed": recipe.config.seed, "people": len(latents)}
        if losses:
            facts["loss"] = round(sum(losses[-100:]) / len(losses[-100:]), 4)
        save_hypernetwork(path / "hypernetwork.safetensors", hypernetwork, base_fingerprint=base.fingerprint(),
                          training=facts, dtype=torch.float16)  # fmt: skip

    if is_main_process():
        with recipe.result(f"{name}-{rounds}").made() as part:
            save(part)


class EncoderObjective(nn.Module):
    """Square error of the identity parameters read off a picture."""

    def __init__(self, reader: RegressionHead) -> None:
        super().__init__()
        self.reader = reader

    def forward(self, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        """Loss of pictures (b, 3, h, w) and parameters (b, d)."""
        pictures, wanted = batch
        return torch.nn.functional.mse_loss(self.reader(pictures), wanted)
