"""Drawing pictures with a base and an adapter: deterministic samplers, guidance in one batch, an adapter per picture.

The noise of each picture is drawn on the CPU from a seed of its own, so that a picture does not depend on its company
or its device.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import BaseMismatchError, ConfigError
from ..formats.adapter_file import Identity
from ..ops.lowrank import LoraPair
from .base import Base, Conditioning, frozen
from .progress import Progress, no_progress

Adapter = Identity | Mapping[str, LoraPair] | None
"""What to draw with: an identity, pairs shared by all pictures or one per picture (leading axis), or the base alone."""


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Settings of drawing pictures."""

    steps: int = 20
    """Denoising steps."""
    guidance_scale: float = 3.0
    """How far to follow the prompt; 1 does not guide, and takes half the time."""
    seed: int = 0
    """Seed of the first picture's noise; the next ones count on from it."""
    strength: float = 1.0
    """How much of the adapter to apply: 0 is the base, 1 as trained."""
    size: int = 0
    """Side of the pictures in px; 0 takes the base's own."""
    sampler: Literal["dpm++", "ddim"] = "dpm++"
    """DPM-Solver++ of second order (2M), or DDIM; both deterministic."""
    negative_prompt: str = ""
    """What guidance leads away from; empty for nothing in particular."""
    null_branch: Literal["personalized", "base"] = "personalized"
    """Whether the branch that guidance leads away from has the adapter too, as every LoRA host does it, or is the base
    alone, which pushes towards the subject as well."""
    batch: int = 8
    """Pictures drawn at once."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.guidance_scale < 0:
            raise ConfigError(f"guidance_scale must be 0 or more, got {self.guidance_scale}")
        if self.size < 0 or self.size % 8:
            raise ConfigError(f"size must be a multiple of 8 px, got {self.size}")


def sample(
    base: Base,
    prompts: Sequence[str],
    adapter: Adapter = None,
    config: SampleConfig | None = None,
    progress: Progress = no_progress,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """Pictures (b, 3, h, w) in 0..1, one for each prompt, on the base's device.

    Args:
        base: to draw with.
        prompts: as the text encoder shall see them; see `prompts.insert_identifier`.
        adapter: shared by all pictures, or with a leading axis of b.
        config: settings.
        progress: called with (step, steps) over all batches.
        seeds: of each picture's noise, instead of counting on from the config's.

    Raises:
        BaseMismatchError: an identity made for another base family.
        ConfigError: adapters or seeds for another number of pictures.
    """
    config = config or SampleConfig()
    seeds = [config.seed + index for index in range(len(prompts))] if seeds is None else seeds
    if len(seeds) != len(prompts):
        raise ConfigError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one for each")
    pairs = _checked_pairs(base, adapter, len(prompts)) if config.strength else {}
    starts = range(0, len(prompts), config.batch)
    pictures = []
    with torch.no_grad(), frozen(base):
        for index, first in enumerate(starts):
            rows = slice(first, first + config.batch)

            def within(step: int, index: int = index) -> None:
                progress(index * config.steps + step, len(starts) * config.steps)

            branches = _Branches.encode(base, prompts[rows], _rows(pairs, rows), config)
            latents = _initial_noise(base, seeds[rows], config)
            pictures.append(base.decode_latents(_denoise(base, branches, latents, config, within)))
    progress(len(starts) * config.steps, len(starts) * config.steps)
    return torch.cat(pictures) if pictures else torch.zeros(0, 3, config.size, config.size)


@dataclass(frozen=True, eq=False)
class _Branches:
    """What guidance combines: the model with the prompts, and with the negative prompt."""

    prompted: Conditioning
    """(b, ...)"""
    null: Conditioning
    """(b, ...)"""
    pairs: Mapping[str, LoraPair]
    """of the UNet"""
    config: SampleConfig

    @classmethod
    def encode(
        cls, base: Base, prompts: Sequence[str], pairs: Mapping[str, LoraPair], config: SampleConfig
    ) -> _Branches:
        text = {name: pair for name, pair in pairs.items() if name.startswith("text_encoder")}
        unet = {name: pair for name, pair in pairs.items() if name not in text}
        null_prompts = [config.negative_prompt] * len(prompts)
        with base.adapted(text, config.strength) if text else nullcontext():
            prompted = base.encode_prompt(prompts)
            null = base.encode_prompt(null_prompts)
        if text and config.null_branch == "base":
            null = base.encode_prompt(null_prompts)
        return cls(prompted, null, unet, config)

    def predict(self, base: Base, latents: Tensor, timestep: Tensor) -> Tensor:
        """The guided output (b, c, h, w) at one timestep ()."""
        scale, count = self.config.guidance_scale, len(latents)
        if scale == 1:
            with self._adapted(base):
                return base.predict(latents, timestep.expand(count), self.prompted)
        if self.config.null_branch == "base" and self.pairs:
            with self._adapted(base):
                prompted = base.predict(latents, timestep.expand(count), self.prompted)
            null = base.predict(latents, timestep.expand(count), self.null)
        else:
            # Both branches of a picture side by side, so that they share its adapter.
            both = Conditioning.interleave(self.null, self.prompted)
            with self._adapted(base, samples_each=2):
                output = base.predict(latents.repeat_interleave(2, 0), timestep.expand(2 * count), both)
            null, prompted = output[0::2], output[1::2]
        return null + scale * (prompted - null)

    def _adapted(self, base: Base, samples_each: int = 1) -> AbstractContextManager[None]:
        return base.adapted(self.pairs, self.config.strength, samples_each) if self.pairs else nullcontext()


def _denoise(base: Base, branches: _Branches, latents: Tensor, config: SampleConfig, progress: Any) -> Tensor:
    scheduler = _scheduler(base, config)
    latents = latents * scheduler.init_noise_sigma
    for step, timestep in enumerate(scheduler.timesteps):
        progress(step)
        output = branches.predict(base, scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
    return latents


def _scheduler(base: Base, config: SampleConfig) -> Any:
    """A diffusers scheduler on the base's own noise schedule, from its noisiest timestep down."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    alphas = base.alphas_cumprod.double().cpu()
    betas = 1 - alphas / torch.cat([torch.ones(1, dtype=torch.float64), alphas[:-1]])
    options: dict[str, Any] = {
        "num_train_timesteps": len(betas),
        "trained_betas": betas.numpy(),
        "prediction_type": base.prediction_type,
        # "leading" starts below the last timestep, where the latents are not yet pure noise.
        "timestep_spacing": "trailing",
    }
    if config.sampler == "ddim":
        scheduler: Any = DDIMScheduler(clip_sample=False, set_alpha_to_one=True, **options)
    else:
        scheduler = DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, **options)
    with warnings.catch_warnings():
        # diffusers hands tensors to NumPy in a way that NumPy 2 wants to do away with.
        warnings.simplefilter("ignore", DeprecationWarning)
        scheduler.set_timesteps(config.steps)
    return scheduler


def _initial_noise(base: Base, seeds: Sequence[int], config: SampleConfig) -> Tensor:
    """(b, c, h, w)"""
    side = (config.size or base.family.picture_size) // base.family.vae_factor
    shape = (base.family.latent_channels, side, side)
    # Drawn on the CPU: other devices give other numbers for the same seed.
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(noise).to(base.device)


def _checked_pairs(base: Base, adapter: Adapter, count: int) -> Mapping[str, LoraPair]:
    if isinstance(adapter, Identity):
        if adapter.family != base.family.name:
            raise BaseMismatchError(
                f"the identity was made for {adapter.family!r}, but the base is {base.family.name!r}; load a base of "
                f"{adapter.family!r}"
            )
        return adapter.expand()
    for name, pair in (adapter or {}).items():
        if pair.down.dim() == 3 and pair.down.shape[0] != count:
            raise ConfigError(
                f"layer {name!r} has adapters for {pair.down.shape[0]} pictures, but there are {count} prompts; give "
                "one for each, or one for all"
            )
    return adapter or {}


def _rows(pairs: Mapping[str, LoraPair], rows: slice) -> dict[str, LoraPair]:
    return {
        name: LoraPair(pair.down[rows], pair.up[rows]) if pair.down.dim() == 3 else pair for name, pair in pairs.items()
    }
