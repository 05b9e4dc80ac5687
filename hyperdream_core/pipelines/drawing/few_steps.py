"""A picture drawn in a few steps, to see what an identity looks like while it is being polished."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from ...ops import noise as diffusion
from ...ops.lowrank import LoraPair
from ..base import Base, Conditioning
from .samplers import ddim_step

_STEPS = 8
_GUIDANCE = 3.0


def few_steps(base: Base, pairs: Mapping[str, LoraPair], prompts: Conditioning, size: int) -> Tensor:
    """Latents (1, c, h, w) drawn in a few steps, always from the same noise; prompts are one and the empty one."""
    side = size // base.family.vae_factor
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, base.family.latent_channels, side, side, generator=generator).to(base.device)
    last = len(base.alphas_cumprod) - 1
    timesteps = torch.linspace(last, 0, _STEPS + 1).round().long()[:-1]
    with base.adapted(pairs):
        for timestep, following in pairwise([*timesteps, None]):
            outputs = base.predict(latents.expand(2, -1, -1, -1), timestep.expand(2), prompts)
            with_prompt, without = outputs[:1], outputs[1:]
            output = without + _GUIDANCE * (with_prompt - without)
            if following is None:
                alpha = base.alphas_cumprod[timestep][None]
                return diffusion.predicted_x0(output, latents, alpha, base.prediction_type)
            latents = ddim_step(base, output, latents, timestep, following)
    return latents
