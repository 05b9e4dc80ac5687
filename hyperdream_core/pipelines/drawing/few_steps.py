"""Pictures in a few steps, rough and soon there: to look at an identity while it is polished, and to preserve a start.

Both draw with DDIM and one guidance scale, whatever the user draws with later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ...ops.lowrank import LoraPair
from ..base import Base, Conditioning
from .samplers import denoise

_STEPS = 8
_GUIDANCE_SCALE = 3.0


def few_steps(base: Base, pairs: Mapping[str, LoraPair], prompts: Conditioning, size: int) -> Tensor:
    """Latents (1, c, h, w) drawn in a few steps, always from the same noise; prompts are one and the empty one."""
    side = size // base.family.vae_factor
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, base.family.latent_channels, side, side, generator=generator).to(base.device)

    def outputs(latents: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        both = base.predict(latents.expand(2, -1, -1, -1), t.expand(2), prompts)
        return both[:1], both[1:]

    with base.adapted(pairs):
        return guided_by_outputs(base, noise, _STEPS, outputs)


def guided_by_outputs(
    base: Base, noise: Tensor, steps: int, outputs: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> Tensor:
    """Latents (b, c, h, w) drawn from noise.

    Args:
        base: whose noise process it is.
        noise: (b, c, h, w).
        steps: of DDIM.
        outputs: what the base puts out with the prompts and without, for latents (b, c, h, w) at a noise level (1,).
    """

    def clean_at(latents: Tensor, t: Tensor) -> Tensor:
        prompt, null = outputs(latents, t)
        return base.noise.clean(null + _GUIDANCE_SCALE * (prompt - null), latents, t)

    return denoise(base.noise, "ddim", steps, noise, clean_at)
