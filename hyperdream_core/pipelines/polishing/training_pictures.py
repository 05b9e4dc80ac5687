"""What polishing trains on: latents of the references and of slightly moved copies, and prompts, encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ...errors import ConfigError, ReferenceImageError
from ..base import Base
from .denoising_error import Prompts, Samples

_HOLDOUT_LEVELS = (0.95, 0.85, 0.7, 0.5)
"""Noise levels at which a held-out crop is judged; identity is decided at the high ones."""
_HEAD = (0.67, 0.92)
"""Half width and half height of the head in a prepared crop, hair included, as shares of half the side."""
_HOLDOUT_ZOOM = 0.12
"""The held-out crop leaves out this share of the picture's side, more than the copies' jitter usually does."""


@dataclass(frozen=True, eq=False)
class Selection:
    """The samples of one step."""

    latents: Tensor
    """(rows, b, c, h, w), clean"""
    noise: Tensor
    """(b, c, h, w), the same for all rows, so that a subject's result does not depend on its company"""
    t: Tensor
    """(b,) noise levels, likewise"""
    prompts: Tensor
    """(rows, b), which of the prompts belongs to each"""
    weights: Tensor | None
    """(h, w), how much each place counts; None counts all the same"""

    def samples(self, base: Base) -> Samples:
        """The latents with their noise, and what the base shall put out for them."""
        rows, samples = self.latents.shape[:2]
        clean = self.latents.flatten(0, 1)
        noise = self.noise.to(clean.device).repeat(rows, 1, 1, 1)
        every = self.t.repeat(rows)
        noisy, wanted = base.noise.noisy(clean, noise, every), base.noise.target(clean, noise, every)
        shape = (rows, samples)
        return Samples(noisy.unflatten(0, shape), self.t, wanted.unflatten(0, shape), self.prompts, self.weights)


@dataclass(frozen=True, eq=False)
class TrainingPictures:
    """Everything encoded that a run over some subjects (rows) trains on."""

    latents: Sequence[Tensor]
    """per row (k, c, h, w), its pictures and their copies"""
    pictures: Sequence[int]
    """per row, how many of those are pictures"""
    prompts: Prompts
    """one for each of a row's pictures"""
    holdout: Selection
    """a crop that is not trained on, at fixed noise"""
    seed: int

    def select(self, step: int, samples: int, noise_power: float) -> Selection:
        """The samples of a step; they depend on seed and step alone, so that a resumed run goes on as it would have."""
        generator = _generator(self.seed, step)
        # One level from each part of the distribution: a step of few samples still sees all of it.
        t = ((torch.arange(samples) + torch.rand(samples, generator=generator)) / samples) ** (1 / noise_power)
        choice = torch.rand(samples, generator=generator)
        noise = torch.randn(samples, *self.latents[0].shape[1:], generator=generator)
        # Every row takes the same share of its way through its own copies.
        picked = [(choice * len(pool)).long() for pool in self.latents]
        latents = [pool[index.to(pool.device)] for pool, index in zip(self.latents, picked, strict=True)]
        prompts = [self._prompt_of(row, index) for row, index in enumerate(picked)]
        return Selection(torch.stack(latents), noise, t, torch.stack(prompts), self.holdout.weights)

    def _prompt_of(self, row: int, item: Tensor) -> Tensor:
        """Pools hold a row's n pictures and then the copies of each in turn."""
        pictures = self.pictures[row]
        copies = max(1, len(self.latents[row]) // pictures - 1)
        picture = torch.where(item < pictures, item, (item - pictures) // copies)
        return row * self.prompts.each + picture.clamp(max=self.prompts.each - 1)


@torch.no_grad()
def encode_pictures(
    base: Base,
    subjects: Sequence[tuple[Tensor, Sequence[str]]],
    names: Sequence[str],
    crops: int,
    jitter: float,
    background: float,
    seed: int,
) -> TrainingPictures:
    """Encode pictures, copies and prompts.

    Args:
        subjects: pictures (n, 3, h, w) in 0..1, all of one size, and a caption for each, or none.
        names: how prompts call each subject.
        crops: copies of each picture.
        jitter: largest shift and zoom of the copies, as a share of the side.
        background: weight of the places around the head.

    Raises:
        ReferenceImageError: a subject without pictures, or pictures of different sizes.
        ConfigError: captions for another number of pictures.
    """
    references = [pictures for pictures, _ in subjects]
    sizes = {tuple(pictures.shape[1:]) for pictures in references}
    if len(sizes) != 1 or any(len(pictures) == 0 for pictures in references):
        raise ReferenceImageError(
            f"the subjects have {[tuple(pictures.shape) for pictures in references]} as pictures, expected "
            "(n, 3, h, w) with n of 1 or more and one size for all; crop them to the base's size"
        )
    generator = _generator(seed, -1)
    # Drawn once for all subjects, by the largest number of pictures.
    draws = torch.rand(max(len(pictures) for pictures in references), crops, 3, generator=generator) * 2 - 1
    pools = []
    for pictures in references:
        pictures = pictures.float()
        moves = rearrange(draws[: len(pictures)] * jitter, "n k m -> (n k) m")
        copies = _moved(pictures.repeat_interleave(crops, 0), moves) if crops else pictures[:0]
        pools.append(base.encode_image(torch.cat([pictures, copies])))
    first = torch.cat([pictures[:1].float() for pictures in references])
    held_out = base.encode_image(_moved(first, torch.tensor([[0.0, 0.0, -_HOLDOUT_ZOOM]]).expand(len(first), 3)))
    prompts, each = _prompts(subjects, names)
    t = torch.tensor(_HOLDOUT_LEVELS)
    noise = torch.randn(len(t), *held_out.shape[1:], generator=generator)
    of_first = torch.arange(0, len(prompts), each)[:, None].expand(-1, len(t))
    weights = _around_the_head(held_out, background) if background != 1 else None
    holdout = Selection(held_out[:, None].expand(-1, len(t), -1, -1, -1), noise, t, of_first, weights)
    counts = [len(pictures) for pictures in references]
    return TrainingPictures(pools, counts, Prompts.encoded(base, prompts, each), holdout, seed)


def _around_the_head(latents: Tensor, background: float) -> Tensor:
    """(h, w): 1 in the upright ellipse where a prepared crop has the head, `background` around it."""
    y, x = (torch.linspace(-1, 1, 2 * side + 1)[1::2] for side in latents.shape[-2:])
    inside = (x / _HEAD[0]).square() + (y / _HEAD[1])[:, None].square() <= 1
    return torch.where(inside, 1.0, background).to(latents)


def _prompts(subjects: Sequence[tuple[Tensor, Sequence[str]]], names: Sequence[str]) -> tuple[list[str], int]:
    """Prompts of all pictures, row by row, and how many a row has; its last one fills up those with fewer."""
    each = max(len(captions) for _, captions in subjects) or 1
    prompts = []
    for (pictures, captions), name in zip(subjects, names, strict=True):
        if captions and len(captions) != len(pictures):
            raise ConfigError(
                f"{len(captions)} captions for {len(pictures)} pictures; give one for each, empty ones included"
            )
        row = [f"{name}, {caption}" if caption else name for caption in captions] or [name]
        prompts += row + row[-1:] * (each - len(row))
    return prompts, each


def _moved(pictures: Tensor, moves: Tensor) -> Tensor:
    """Pictures (b, 3, h, w) shifted and zoomed, the border filled by reflection.

    Args:
        moves: (b, 3): shift right and down as shares of the side, and by how much more (or less) of it is shown.
    """
    theta = torch.zeros(len(pictures), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 + moves[:, 2]
    theta[:, :, 2] = 2 * moves[:, :2]
    grid = F.affine_grid(theta.to(pictures), list(pictures.shape), align_corners=False)
    moved = F.grid_sample(pictures, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return moved.clamp(0, 1)


def _generator(seed: int, step: int) -> torch.Generator:
    """Of one step; -1 for what is drawn once."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step + 1)
