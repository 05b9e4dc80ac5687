"""Drawing pictures with a base and adapters: deterministic samplers, guidance in one batch, an adapter per picture.

The noise of each picture is drawn on the CPU from a seed of its own, so that a picture does not depend on its company
or its device.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...config import check_at_most
from ...errors import ConfigError
from ...ops.finite import is_finite, sound
from ..base import Base, check_answer, frozen
from ..progress import Progress, also_while_waiting, no_progress
from .guidance_config import GuidanceConfig
from .guided_step import Guidance
from .one_call import PartPredictions
from .samplers import denoise, initial_noise
from .subjects import Subjects, resolve


@dataclass(frozen=True, kw_only=True)
class DrawConfig(GuidanceConfig):
    """Settings of drawing pictures."""

    steps: int = 20
    """Denoising steps."""
    seed: int = 0
    """Seed of the first picture's noise; the next ones count on from it."""
    size: int = 0
    """Side of the pictures in px; 0 takes the base's own."""
    sampler: Literal["dpm++", "ddim"] = "dpm++"
    """DPM-Solver++ of second order (2M), or DDIM; both deterministic."""
    negative_prompt: str = ""
    """What guidance leads away from; empty for nothing in particular."""
    batch: int = 8
    """Pictures drawn at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        check_at_most(self, steps=1000, batch=1024, size=4096, seed=2**63 - 1)
        if self.size < 0 or self.size % 8:
            raise ConfigError(f"size must be a multiple of 8 px, got {self.size}")


def draw(
    base: Base,
    prompts: Sequence[str],
    adapter: Subjects = None,
    config: DrawConfig | None = None,
    progress: Progress = no_progress,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """Pictures (b, 3, h, w) in 0..1, one for each prompt, on the base's device.

    Args:
        base: to draw with.
        prompts: as the text encoder shall see them; see `prompts.insert_identifier`. Where the base is asked, the
            identifier is left out.
        adapter: shared by all pictures, or with a leading axis of b; a `Subject` for more, several for several people.
        config: settings.
        progress: called with (step, steps) over all batches.
        seeds: of each picture's noise, instead of counting on from the config's.

    Raises:
        BaseMismatchError: an identity made for another base family.
        ConfigError: adapters or seeds for another number of pictures; bands or masks that do not fit.
        OutputError: what came out is no picture, because numbers overflow or a file is damaged.
    """
    config = config or DrawConfig()
    seeds = [config.seed + index for index in range(len(prompts))] if seeds is None else seeds
    if len(seeds) != len(prompts):
        raise ConfigError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one for each")
    subjects = resolve(base.family, adapter, config, len(prompts))
    size = config.size or base.family.picture_size
    starts = range(0, len(prompts), config.batch)
    pictures = []
    with torch.no_grad(), frozen(base), also_while_waiting(progress) as progress:
        for index, first in enumerate(starts):
            rows = slice(first, first + config.batch)

            def within(step: int, index: int = index) -> None:
                progress(index * config.steps + step, len(starts) * config.steps)

            guidance = Guidance(config, [subject.rows(rows) for subject in subjects])
            noise = initial_noise(base, seeds[rows], size)
            latents = _drawn(base, guidance, config, prompts[rows], noise, within)
            pictures.append(decoded(base, latents))
    progress(len(starts) * config.steps, len(starts) * config.steps)
    return torch.cat(pictures) if pictures else torch.zeros(0, 3, size, size)


def _drawn(
    base: Base,
    guidance: Guidance,
    config: DrawConfig,
    prompts: Sequence[str],
    noise: Tensor,
    progress: Callable[[int], None],
) -> Tensor:
    """Clean latents (b, c, h, w) of noise."""
    identifiers = [subject.identifier for subject in guidance.subjects]
    predictions = PartPredictions(base, prompts, config.negative_prompt, identifiers)
    steps = itertools.count()

    def clean_at(latents: Tensor, t: Tensor) -> Tensor:
        number = next(steps)
        progress(number)
        step = guidance.step(float(t), config.guidance_scale, latents.device)
        clean = step.guided(latents, lambda parts: predictions.clean(parts, latents, t))
        return clean if number else seen(clean)

    def seen(drawn: Tensor) -> Tensor:
        if not is_finite(drawn):
            # Of the base, of its text encoder, or else of what acts on it.
            first = base.noise.levels(config.steps)[:1].expand(len(noise))
            check_answer(base, noise, first, base.encode_prompt(prompts))
        return sound(drawn, "what was drawn", "use a smaller strength or guidance scale, or another identity")

    # After the first step, where most of what is broken shows, and once more at the end.
    return seen(denoise(base.noise, config.sampler, config.steps, noise, clean_at))


def decoded(base: Base, latents: Tensor) -> Tensor:
    """Pictures (b, 3, h, w) in 0..1 of scaled latents (b, c, h, w).

    Raises:
        OutputError: the VAE's numbers overflow, or its weights are damaged.
    """
    remedy = "load the VAE in float32 or bfloat16 (--dtype), or get the checkpoint again"
    return sound(
        base.decode_latents(latents), "what the VAE made of the latents", remedy, (len(latents), 3, None, None)
    )
