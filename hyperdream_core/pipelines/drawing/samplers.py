"""Samplers on the base's own noise schedule, and the noise that a seed stands for."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...ops import noise as diffusion
from ..base import Base


def new_scheduler(base: Base, sampler: str, steps: int) -> Any:
    """A diffusers scheduler, `dpm++` or `ddim`, from the base's noisiest timestep down."""
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
    if sampler == "ddim":
        scheduler: Any = DDIMScheduler(clip_sample=False, set_alpha_to_one=True, **options)
    else:
        scheduler = DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, **options)
    with warnings.catch_warnings():
        # diffusers hands tensors to NumPy in a way that NumPy 2 wants to do away with.
        warnings.simplefilter("ignore", DeprecationWarning)
        scheduler.set_timesteps(steps)
    return scheduler


def initial_noise(base: Base, seeds: Sequence[int], size: int) -> Tensor:
    """(b, c, h, w) of unit variance, on the base's device, for pictures of `size` px."""
    side = size // base.family.vae_factor
    shape = (base.family.latent_channels, side, side)
    # Drawn on the CPU: other devices give other numbers for the same seed.
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(noise).to(base.device)


def ddim_step(base: Base, output: Tensor, latents: Tensor, timestep: Tensor, following: Tensor) -> Tensor:
    """Latents (b, c, h, w) at the following timestep, from the base's output for them at this one.

    Source: DDIM, Song et al., arXiv:2010.02502, without noise of its own.
    """
    alpha, less = (base.alphas_cumprod[one].expand(len(latents)).to(latents.device) for one in (timestep, following))
    clean = diffusion.predicted_x0(output, latents, alpha, base.prediction_type)
    noise = diffusion.predicted_noise(output, latents, alpha, base.prediction_type)
    return diffusion.add_noise(clean, noise, less)
