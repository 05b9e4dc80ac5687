"""Probes of a predictor while it is trained: held-out people at fixed noise, with the right reference and others.

The training loss hardly moves for hundreds of steps, because most of it is no question of who somebody is. Identity is
decided at high noise: there the loss with the right reference falls below that with another person's, with the mean of
all references, and with the base alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from ...models.hypernetwork import Hypernetwork
from ...models.image_encoder import ImageFeatures, combine
from ..base import Base
from ..drawing.draw import DrawConfig, draw
from ..predictors.predict import PredictConfig, predict_identity
from .subject_rows import SubjectBatches, Subjects, prompt_of, seen
from .train_hypernetwork import expand_batch, layer_bases

LEVELS = (0.95, 0.8, 0.5)
"""Noise levels that are probed; the first decides who is drawn."""
GRID_STEPS = 20
"""Denoising steps of a grid's pictures."""
_SEED = 20_231
_REFERENCES = ("right", "wrong", "mean")


@dataclass(eq=False)
class Probes:
    """Fixed questions about people that no training sees."""

    corpus: Subjects
    base: Base
    hypernetwork: Hypernetwork
    batches: SubjectBatches
    people: Tensor
    """numbers of the held-out subjects that are asked about, (n,)"""
    at_once: int = 4
    """subjects in one call of the base"""
    _of_base: dict[str, float] = field(default_factory=dict)
    """losses of the base alone, which never change"""

    def __post_init__(self) -> None:
        self._bases = layer_bases(self.hypernetwork)

    @torch.no_grad()
    def losses(self) -> dict[str, float]:
        """Name, such as "right at 0.95" -> mean square error of the base's output on the held-out pictures.

        "wrong" is the reference of another held-out person, "mean" the mean of all of theirs, "base" no adapter.
        """
        is_training = self.hypernetwork.training
        self.hypernetwork.train(False)
        try:
            features = self._features()
            found: dict[str, float] = {}
            for name, ones in self._answers(features).items():
                found |= self._losses_of(name, ones)
        finally:
            self.hypernetwork.train(is_training)
        if not self._of_base:
            self._of_base = self._losses_of("base", None)
        return {**found, **self._of_base}

    def grid(self, prompts: Sequence[str], config: PredictConfig, people: int = 4) -> list[Picture]:
        """Held-out people: the reference, and one picture for each prompt."""
        shown = []
        for person in self.people[:people]:
            one = person[None]
            reference = self.corpus.take("references", one)
            identity = predict_identity(self.hypernetwork, reference.to(self.batches.device), config)
            drawn = draw(self.base, prompts, identity, DrawConfig(steps=GRID_STEPS))
            shown.append(Picture(self.corpus.subjects[int(person)].name, (reference[0], *drawn.cpu())))
        return shown

    def _features(self) -> ImageFeatures:
        found = [seen(self.corpus, part, torch.zeros_like(part), self.batches) for part in self._parts()]
        # Pictures are looked at a few at a time.
        each = [one if isinstance(one, ImageFeatures) else self.hypernetwork.encode(one) for one in found]
        return ImageFeatures(torch.cat([one.tokens for one in each]), torch.cat([one.pooled for one in each]))

    def _answers(self, features: ImageFeatures) -> Mapping[str, ImageFeatures]:
        """The features that each kind of reference has, for every person."""
        count, mean = len(self.people), combine(features)
        answers = {
            "right": features,
            "wrong": ImageFeatures(features.tokens.roll(1, 0), features.pooled.roll(1, 0)),
            "mean": ImageFeatures(mean.tokens.expand(count, -1, -1), mean.pooled.expand(count, -1)),
        }
        # There is no other person than the only one.
        return answers if count > 1 else {"right": features}

    def _losses_of(self, name: str, features: ImageFeatures | None) -> dict[str, float]:
        """At each level, over all people."""
        totals, start = torch.zeros(len(LEVELS), dtype=torch.float64), 0
        for part in self._parts():
            rows = slice(start, start + len(part))
            own = None if features is None else ImageFeatures(features.tokens[rows], features.pooled[rows])
            totals += self._errors(part, own, start).double().sum(0).cpu()
            start += len(part)
        return {f"{name} at {level:g}": float(total) / start for level, total in zip(LEVELS, totals, strict=True)}

    def _errors(self, people: Tensor, features: ImageFeatures | None, start: int) -> Tensor:
        """(people, levels)"""
        pictures, each = torch.zeros_like(people), len(LEVELS)
        latents = self.corpus.take("latents", people, pictures).to(self.batches.device)
        captions = self.corpus.captions(people, pictures)
        # Of the person's place, so that it is the same however many are asked at once.
        noise = torch.cat([
            torch.randn(1, *latents.shape[1:], generator=torch.Generator().manual_seed(_SEED + start + row))
            for row in range(len(people))
        ]).to(latents)  # fmt: skip
        latents, noise = latents.repeat_interleave(each, 0), noise.repeat_interleave(each, 0)
        t = torch.tensor(LEVELS).repeat(len(people))
        prompts = [prompt_of(self.batches.names, caption) for caption in captions for _ in LEVELS]
        adapted: AbstractContextManager[None] = nullcontext()
        if features is not None:
            adapted = self.base.adapted(expand_batch(self.hypernetwork(features), self._bases, each))
        with adapted:
            text = self.base.encode_prompt(prompts)
            output = self.base.predict(self.base.noise.noisy(latents, noise, t), t, text)
        errors = (output - self.base.noise.target(latents, noise, t)).square().mean((1, 2, 3))
        return errors.view(-1, each)

    def _parts(self) -> Sequence[Tensor]:
        parts: Sequence[Tensor] = self.people.split(self.at_once)
        return parts


@dataclass(frozen=True, eq=False)
class Picture:
    """A row of the grid."""

    name: str
    pictures: tuple[Tensor, ...]
    """(3, h, w) in 0..1: the reference, and what was drawn"""


def grid_picture(shown: Sequence[Picture], prompts: Sequence[str], step: int) -> Image.Image:
    """The grid as one picture."""
    from ...pictures.grid import labelled_grid

    columns = ["held-out reference", *prompts]
    rows = [list(one.pictures) for one in shown]
    return labelled_grid(rows, columns, [one.name[:24] for one in shown], title=f"after {step:,} steps", cell=192)
