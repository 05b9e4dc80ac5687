"""What a reference shows besides its subject, read off it by the base itself: words that polishing need not learn.

A caption under which the base denoises a picture better describes it better. So of several words for the same
thing the right one is found without any further model, and a smile that the caption names is not learnt as a part of
the person.

Source: Diffusion Classifier, arXiv:2303.16203; naming the context in captions is what kohya's users do by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError
from .base import Base, frozen


@dataclass(frozen=True, kw_only=True)
class DescribeConfig:
    """Settings of reading a caption off a picture."""

    levels: tuple[float, ...] = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
    """Noise levels t, 0..1, at which captions are compared; layout and faces are decided at the high ones."""
    draws: int = 1
    """Noise draws at each of them, the same for all captions."""
    batch: int = 48
    """Pictures denoised at once."""
    seed: int = 0
    """Seed of the noise."""

    def __post_init__(self) -> None:
        for name in ("draws", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not self.levels or not all(0 < level < 1 for level in self.levels):
            raise ConfigError(f"levels must lie between 0 and 1, got {self.levels}")


def describe(
    base: Base,
    references: Tensor,
    choices: Mapping[str, Sequence[str]],
    subject: str,
    config: DescribeConfig | None = None,
) -> list[str]:
    """Of each kind of words the one that fits best, joined by commas; one description per picture.

    The last kind is chosen first, and each is judged in the company of those already chosen: put what is plain to see
    (style, place) last, as captions usually do.

    Args:
        base: judges.
        references: (n, 3, h, w) in 0..1, at the base's size.
        choices: kind -> words to choose from, in the caption's order; an empty word says nothing, and may win.
        subject: what stands in front, such as "a face".
        config: settings.

    Returns:
        Such as "smiling, at the beach, photo".
    """
    config = config or DescribeConfig()
    with torch.no_grad(), frozen(base):
        return [_described(base, picture, choices, subject, config) for picture in references.split(1)]


def _described(
    base: Base, picture: Tensor, choices: Mapping[str, Sequence[str]], subject: str, config: DescribeConfig
) -> str:
    said: list[str] = []
    for words in reversed(list(choices.values())):
        candidates = [[word, *said] if word else said for word in words]
        captions = [", ".join([subject, *parts]) for parts in candidates]
        said = candidates[int(caption_losses(base, picture, captions, config).argmin())]
    return ", ".join(said)


def caption_losses(base: Base, references: Tensor, captions: Sequence[str], config: DescribeConfig) -> Tensor:
    """Mean squared denoising error (n, captions) of pictures (n, 3, h, w) under each caption, on common noise."""
    latents = base.encode_image(references)
    levels = torch.tensor(config.levels).repeat(config.draws)
    generator = torch.Generator().manual_seed(config.seed)
    noise = torch.randn(len(levels), *latents.shape[1:], generator=generator).to(latents.device)
    text = base.encode_prompt(captions)
    losses = torch.zeros(len(latents), len(captions))
    for row, clean in enumerate(latents):
        clean = clean.expand(len(levels), -1, -1, -1)
        noisy, wanted = base.noise.noisy(clean, noise, levels), base.noise.target(clean, noise, levels)
        # Caption by caption within a level: (captions, levels) flattened, cut into batches.
        order = torch.cartesian_prod(torch.arange(len(captions)), torch.arange(len(levels)))
        for caption, level in (part.unbind(1) for part in order.split(config.batch)):
            output = base.predict(noisy[level], levels[level], text[caption])
            errors = (output - wanted[level]).square().mean((1, 2, 3)).cpu()
            losses[row].index_add_(0, caption, errors / len(levels))
    return losses
