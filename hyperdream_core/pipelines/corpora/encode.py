"""Encoding: a corpus' pictures become a base's latents, and its references what a frozen image encoder sees in them.

A training then needs neither the VAE nor the image encoder, and no picture is looked at twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...bases import BaseFamily
from ...errors import ConfigError
from ...ops.finite import sound
from ...pictures.files import resize
from ..predictors.frozen_encoder import FrozenEncoder
from ..progress import Progress, no_progress
from .corpus import Corpus
from .shards import Contents, Part, Say, make_part

AT_ONCE = 16
"""Pictures that are encoded at once."""


class EncodingBase(Protocol):
    """What encoding asks of a base."""

    @property
    def family(self) -> BaseFamily: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def vae(self) -> Any: ...
    def encode_image(self, images: Tensor) -> Tensor: ...
    def fingerprint(self) -> str: ...


def encode_latents(
    corpus: Corpus, base: EncodingBase, progress: Progress = no_progress, say: Say = lambda text: None
) -> None:
    """Make the corpus' latents by a base, or go on with them: of each picture, at the size of the base's family.

    Raises:
        ConfigError: the pictures are unfinished or smaller than the base's, or the latents there are of another base.
        OutputError: the disk is full, or the VAE puts out numbers that are not finite.
    """
    size = _size(corpus, base.family)
    facts = {
        "family": base.family.name,
        "fingerprint": base.fingerprint(),
        "vae": fingerprint_of(base.vae),
        "size": size,
        "dtype": str(base.dtype).removeprefix("torch."),
    }
    remedy = "use --dtype fp32, or get the checkpoint again"

    def encoded(pictures: Tensor) -> dict[str, Tensor]:
        latents = base.encode_image(pictures)
        return {"latents": sound(latents, "the VAE's answer", remedy)}

    shape = (base.family.latent_channels, *[size // base.family.vae_factor] * 2)
    _encode(corpus, "latents", facts, _Work("pictures", size, encoded, {"latents": shape}), progress, say)


def encode_features(
    corpus: Corpus,
    encoder: FrozenEncoder,
    family: BaseFamily,
    progress: Progress = no_progress,
    say: Say = lambda text: None,
) -> None:
    """Make the corpus' features by an image encoder, or go on with them: tokens and pooled of each reference.

    References are brought to the size of the base's family first, as a predictor gets them.

    Raises:
        ConfigError: as `encode_latents`; the features there are of another encoder.
        OutputError: as `encode_latents`.
    """
    size = _size(corpus, family)
    facts = {"encoder": encoder.digest, "name": encoder.name, "config": dict(encoder.config), "size": size}
    remedy = "get the image encoder again"

    @torch.no_grad()
    def encoded(references: Tensor) -> dict[str, Tensor]:
        seen = encoder.network.features(references.to(encoder.device))
        named = {"tokens": seen.tokens, "pooled": seen.pooled}
        return {name: sound(tensor, "the image encoder's answer", remedy) for name, tensor in named.items()}

    probe = encoded(torch.full((1, 3, size, size), 0.5))
    shapes = {name: tuple(tensor.shape[1:]) for name, tensor in probe.items()}
    _encode(corpus, "features", facts, _Work("references", size, encoded, shapes), progress, say)


def fingerprint_of(network: nn.Module) -> str:
    """SHA-256 (hex) of a sample of every tensor of a network, rounded to fp16, as `DiffusersBase.fingerprint`."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 64)][:64].to("cpu", torch.float16)
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(sample.numpy().astype("<f2").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Work:
    """What is encoded, and how."""

    stack: str
    """of the corpus' pictures"""
    size: int
    encode: Callable[[Tensor], dict[str, Tensor]]
    shapes: dict[str, tuple[int, ...]]
    """of what comes out for one picture; a shard may have none"""


def _encode(corpus: Corpus, part: str, facts: dict[str, Any], work: _Work, progress: Progress, say: Say) -> None:
    lengths = [len(corpus.stack(work.stack, index)) for index in range(corpus.manifest.shards)]

    def make(index: int) -> Contents:
        done: dict[str, list[Tensor]] = {name: [torch.empty(0, *shape)] for name, shape in work.shapes.items()}
        stack = corpus.stack(work.stack, index)
        for start in range(0, len(stack), AT_ONCE):
            progress(sum(lengths[:index]) + start, sum(lengths))
            pictures = stack[start : start + AT_ONCE].float() / 255.0
            if pictures.shape[-1] != work.size:
                pictures = torch.stack([resize(one, work.size, work.size) for one in pictures])
            for name, tensor in work.encode(pictures).items():
                done[name].append(tensor.float().cpu())
        # Half precision: a rounding of 2^-11, far below the noise that every training adds.
        return Contents(tensors={name: torch.cat(parts).half() for name, parts in done.items()})

    record = corpus.parts["pictures"]
    entries = [record.shards[str(index)] for index in range(corpus.manifest.shards)]
    made_of = [entry.sha256 for entry in entries]
    corpus.parts[part] = make_part(Part(folder=corpus.folder, name=part, facts=facts, made_of=made_of), make, say)
    progress(sum(lengths), sum(lengths))


def _size(corpus: Corpus, family: BaseFamily) -> int:
    """The side that pictures are encoded at, px."""
    corpus.check()
    size = family.picture_size
    if corpus.manifest.size < size:
        raise ConfigError(
            f"{corpus.folder}: has pictures of {corpus.manifest.size} px, but {family.title} is trained at {size}; "
            f"collect them again with --size {size}"
        )
    return size
