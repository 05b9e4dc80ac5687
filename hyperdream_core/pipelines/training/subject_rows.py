"""What a predictor's training draws from a corpus: for each row a subject, a reference, and pictures to denoise.

A step is drawn whole and alike in every process, as numbers of subjects, pictures and seeds; only the rows that a
process computes are then read and encoded. So the same rows come whatever is computed at once, and by however many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ...errors import ConfigError
from ...models.image_encoder import ImageFeatures
from ...ops.lidb import LidbCoefficients
from ...ops.noise import biased_t
from ...pictures.files import resize
from .train_hypernetwork import HypernetworkBatch


class Subjects(Protocol):
    """What is asked of a corpus."""

    @property
    def training(self) -> Tensor:
        """Numbers of the subjects to learn from, (n,)."""
        ...

    @property
    def reference_counts(self) -> Tensor: ...
    @property
    def picture_counts(self) -> Tensor: ...
    @property
    def subjects(self) -> Sequence[Any]:
        """Each with `references` and `pictures`, the numbers of the photographs that they were cut from."""
        ...

    def take(self, name: str, subjects: Tensor, rows: Tensor | None = None) -> Tensor: ...
    def features(self, subjects: Tensor, rows: Tensor | None = None) -> ImageFeatures: ...
    def captions(self, subjects: Tensor, rows: Tensor) -> list[str]: ...
    def identities(self, subjects: Tensor) -> dict[str, LidbCoefficients]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class SubjectBatches:
    """Draws steps; the loop's `draw_batch`."""

    corpus: Subjects
    rows: int
    """subjects of a step"""
    pictures: int
    """of each subject"""
    names: str
    """of every subject, such as "a sks face\""""
    picture_size: int
    """of the references, px"""
    latent_shape: tuple[int, int, int]
    passes: int
    """of the hypernetwork, at the most"""
    device: torch.device | str = "cpu"
    noise_power: float = 1.5
    unconditional: float = 0.125
    """share of pictures of anybody, under an empty prompt"""
    caption_dropout: float = 0.1
    """share of prompts that only name the subject"""
    has_features: bool = False
    """whether the corpus has what the image encoder sees; else it is asked"""
    has_identities: bool = False

    def __call__(self, generator: torch.Generator) -> SubjectStep:
        """The rows of a step."""
        people, shape = self.corpus.training, (self.rows, self.pictures)
        subjects = people[torch.randint(len(people), (self.rows,), generator=generator)]
        chance = torch.rand(self.rows, 1 + self.pictures, generator=generator)
        references = (chance[:, 0] * self.corpus.reference_counts[subjects]).long()
        shown = subjects[:, None].expand(shape).clone()
        anybody = torch.rand(shape, generator=generator) < self.unconditional
        others = people[torch.randint(len(people), shape, generator=generator)]
        shown[anybody] = others[anybody]
        pictures = torch.tensor(
            [
                [self._picture(int(s), int(r), int(who), float(u)) for who, u in zip(row, us, strict=True)]
                for s, r, row, us in zip(subjects, references, shown, chance[:, 1:], strict=True)
            ]
        )
        plain = torch.rand(shape, generator=generator) < self.caption_dropout
        level = biased_t(generator, self.rows * self.pictures, self.noise_power).reshape(shape)
        passes = int(torch.randint(1, self.passes + 1, (1,), generator=generator))
        seed = int(torch.randint(2**31, (1,), generator=generator))
        return SubjectStep(self, subjects, references, shown, pictures, anybody, plain, level, passes, seed)

    def _picture(self, subject: int, reference: int, shown: int, chance: float) -> int:
        """A picture of whom is shown, of another photograph than the reference if there is one: against copying."""
        options = range(int(self.corpus.picture_counts[shown]))
        if shown == subject:
            entry = self.corpus.subjects[subject]
            photograph = entry.references[reference]
            options = [one for one in options if entry.pictures[one] != photograph] or options  # type: ignore[assignment]
        return options[int(chance * len(options))]


@dataclass(frozen=True, eq=False)
class SubjectStep:
    """One step's rows; the loop's `Drawn`."""

    of: SubjectBatches
    subjects: Tensor  # (rows,)
    references: Tensor  # (rows,)
    shown: Tensor  # (rows, pictures) whose pictures are denoised
    pictures: Tensor  # (rows, pictures)
    anybody: Tensor  # (rows, pictures) whether that is anybody, under an empty prompt
    plain: Tensor  # (rows, pictures) whether the prompt leaves the caption out
    level: Tensor  # (rows, pictures)
    passes: int
    seed: int
    """of the noise of row 0; the next ones count on"""

    def rows(self, chosen: range) -> HypernetworkBatch:
        """These rows, read and on the device."""
        rows, of = slice(chosen.start, chosen.stop), self.of
        shown, pictures = self.shown[rows].flatten(), self.pictures[rows].flatten()
        noise = [
            torch.randn(of.pictures, *of.latent_shape, generator=torch.Generator().manual_seed(self.seed + row))
            for row in chosen
        ]
        targets: Mapping[str, LidbCoefficients] | None = None
        if of.has_identities:
            targets = {
                name: LidbCoefficients(one.down.to(of.device), one.up.to(of.device))
                for name, one in of.corpus.identities(self.subjects[rows]).items()
            }
        return HypernetworkBatch(
            features=seen(of.corpus, self.subjects[rows], self.references[rows], of),
            latents=of.corpus.take("latents", shown, pictures).to(of.device),
            text=self._prompts(rows, shown, pictures),
            targets=targets,
            level=self.level[rows].flatten(),
            noise=torch.cat(noise),
            passes=self.passes,
        )

    def _prompts(self, rows: slice, shown: Tensor, pictures: Tensor) -> list[str]:
        captions = self.of.corpus.captions(shown, pictures)
        anybody, plain = (flags[rows].flatten().tolist() for flags in (self.anybody, self.plain))
        return [
            "" if is_anybody else prompt_of(self.of.names, "" if is_plain else caption)
            for caption, is_anybody, is_plain in zip(captions, anybody, plain, strict=True)
        ]


def prompt_of(names: str, caption: str) -> str:
    """The prompt of a picture: who is in it, and what it shows besides."""
    return f"{names}, {caption}" if caption else names


def seen(corpus: Subjects, subjects: Tensor, rows: Tensor, batches: SubjectBatches) -> ImageFeatures | Tensor:
    """What the image encoder saw in references, or the references (b, 3, size, size) themselves for it to look at."""
    if batches.has_features:
        found = corpus.features(subjects, rows)
        return ImageFeatures(found.tokens.to(batches.device), found.pooled.to(batches.device))
    pictures, size = corpus.take("references", subjects, rows), batches.picture_size
    if pictures.shape[-1] != size:
        # As a predictor gets them: at the size of the base's family first.
        pictures = torch.stack([resize(one, size, size) for one in pictures])
    return pictures.to(batches.device)


def check_identities(corpus: Subjects, start: Mapping[str, LidbCoefficients]) -> None:
    """See that a corpus' pre-optimised identities are for the layers and bases that the hypernetwork predicts.

    Args:
        corpus: with identities.
        start: what the hypernetwork departs from, (1, ...) of each layer.

    Raises:
        ConfigError: they are not.
    """
    first = corpus.identities(corpus.training[:1])
    odd = sorted(first.keys() ^ start.keys())
    if odd:
        raise ConfigError(
            f"the corpus' identities and the hypernetwork differ in {len(odd)} layers, the first {odd[0]!r}; use the "
            "target_set that the identities were optimized with"
        )
    for name, layer in start.items():
        theirs = (first[name].down.shape[-1], first[name].up.shape[-2])
        ours = (layer.down.shape[-1], layer.up.shape[-2])
        if theirs != ours:
            raise ConfigError(
                f"layer {name!r} has down_dim and up_dim {theirs} in the corpus' identities, but {ours} in the "
                "hypernetwork; use those that the identities were optimized with"
            )
