"""Samples that polishing trains on, the prompts they go by, and the personalised base's error on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...bases import UNET
from ..base import Base, Conditioning
from .trainable_adapters import TrainableAdapters


@dataclass(frozen=True, eq=False)
class Prompts:
    """Encoded prompts, row by row and the same number for every row (subject)."""

    texts: Sequence[str]
    each: int
    """prompts of a row"""
    conditioning: Conditioning
    """of the texts, without adapters"""

    @classmethod
    def encoded(cls, base: Base, texts: Sequence[str], each: int) -> Prompts:
        with torch.no_grad():
            return cls(texts, each, base.encode_prompt(texts))


@dataclass(frozen=True, eq=False)
class Samples:
    """b noisy samples of every row, at the same noise levels."""

    noisy: Tensor
    """(rows, b, c, h, w)"""
    t: Tensor
    """(b,) noise levels"""
    wanted: Tensor
    """(rows, b, c, h, w), what the base shall put out"""
    prompts: Tensor
    """(rows, b), which of the prompts, counted over all rows, belongs to each"""
    weights: Tensor | None = None
    """(h, w), how much each place counts; None counts all the same"""

    @property
    def each(self) -> int:
        """b"""
        return len(self.t)

    def split(self, count: int) -> Iterator[Samples]:
        """At most `count` samples of every row at a time."""
        for first in range(0, self.each, count):
            part = slice(first, first + count)
            yield replace(
                self,
                noisy=self.noisy[:, part],
                t=self.t[part],
                wanted=self.wanted[:, part],
                prompts=self.prompts[:, part],
            )


@contextmanager
def personalized(
    base: Base, adapters: TrainableAdapters, prompts: Prompts, samples_each: int
) -> Iterator[Conditioning]:
    """The base with every row's adapter on its `samples_each` samples, and all prompts as that adapter encodes them."""
    pairs = adapters.fold()
    text = {name: pair for name, pair in pairs.items() if base.family.part_of(name) != UNET}
    conditioning = prompts.conditioning
    if text:
        with base.adapted(text, samples_each=prompts.each):
            conditioning = base.encode_prompt(prompts.texts)
    unet = {name: pair for name, pair in pairs.items() if name not in text}
    with base.adapted(unet, samples_each=samples_each):
        yield conditioning


def row_errors(base: Base, conditioning: Conditioning, samples: Samples) -> Tensor:
    """Mean of the weighted squared error of each sample, summed over a row's, (rows,)."""
    rows = len(samples.noisy)
    output = base.predict(samples.noisy.flatten(0, 1), samples.t.repeat(rows), conditioning[samples.prompts.flatten()])
    squares = (output - samples.wanted.flatten(0, 1)).square()
    if samples.weights is not None:
        squares = squares * samples.weights
    return squares.reshape(rows, samples.each, -1).mean(-1).sum(-1)


def add_gradient(
    base: Base, adapters: TrainableAdapters, prompts: Prompts, samples: Samples, weight: float | Tensor, at_once: int
) -> Tensor:
    """Add the gradient of weight times each row's mean squared error to the adapters; return these errors, (rows,).

    Args:
        weight: one for all rows, or (rows,).
        at_once: samples of a row that share a forward pass; memory grows with them.
    """
    total = torch.zeros(adapters.rows, device=base.device)
    for part in samples.split(at_once):
        with personalized(base, adapters, prompts, part.each) as conditioning:
            errors = row_errors(base, conditioning, part) / samples.each
            # Within the context: a host that checkpoints activations runs the layers again here.
            (errors * weight).sum().backward()
        total += errors.detach()
    return total
