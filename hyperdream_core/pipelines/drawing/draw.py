"""Drawing pictures with a base and adapters: deterministic samplers, guidance in one batch, an adapter per picture.

The noise of each picture is drawn on the CPU from a seed of its own, so that a picture does not depend on its company
or its device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ...errors import ConfigError
from ..base import Base, frozen
from ..progress import Progress, no_progress
from .branches import Branches
from .guidance_config import GuidanceConfig
from .samplers import initial_noise, new_scheduler
from .subjects import ResolvedSubject, Subjects, fitted_masks, resolve


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
    """
    config = config or DrawConfig()
    seeds = [config.seed + index for index in range(len(prompts))] if seeds is None else seeds
    if len(seeds) != len(prompts):
        raise ConfigError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one for each")
    subjects = resolve(base.family, adapter, config, len(prompts))
    size = config.size or base.family.picture_size
    masks = _masks(base, subjects, size)
    starts = range(0, len(prompts), config.batch)
    pictures = []
    with torch.no_grad(), frozen(base):
        for index, first in enumerate(starts):
            rows = slice(first, first + config.batch)

            def within(step: int, index: int = index) -> None:
                progress(index * config.steps + step, len(starts) * config.steps)

            parts = [subject.rows(rows) for subject in subjects]
            branches = Branches(base, prompts[rows], config.negative_prompt, parts, config, masks)
            latents = _denoise(base, branches, initial_noise(base, seeds[rows], size), config, within)
            pictures.append(base.decode_latents(latents))
    progress(len(starts) * config.steps, len(starts) * config.steps)
    return torch.cat(pictures) if pictures else torch.zeros(0, 3, config.size, config.size)


def _denoise(base: Base, branches: Branches, latents: Tensor, config: DrawConfig, progress: Any) -> Tensor:
    scheduler = new_scheduler(base, config.sampler, config.steps)
    latents = latents * scheduler.init_noise_sigma
    for step, timestep in enumerate(scheduler.timesteps):
        progress(step)
        output = branches.predict(scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
    return latents


def _masks(base: Base, subjects: Sequence[ResolvedSubject], size: int) -> Tensor | None:
    """(s, h, w) at the latents' size; None if the one subject is everywhere."""
    masks = [subject.mask for subject in subjects if subject.mask is not None]
    side = size // base.family.vae_factor
    return fitted_masks(masks, (size, size), (side, side)).to(base.device) if masks else None
