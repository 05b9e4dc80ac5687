"""What polishing must not unlearn: how the start draws its person in other contexts.

A picture shows one expression, one place and nothing on the head, and polishing learns these together with the
person. Therefore the start first draws a few pictures of other contexts, in few steps; what it puts out on the way is
what the polished identity shall put out there, too. The outputs are the targets, so that a rough picture does no harm.

Source: DreamBooth, arXiv:2208.12242, "Class-specific Prior Preservation Loss", with the predicted person in place of
the class, and distilled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base import Base
from ..drawing.samplers import ddim_step
from .denoising_error import Prompts, Samples, personalized
from .trainable_adapters import TrainableAdapters

CONTEXTS = (
    "calm, wearing a hat, at the beach, photo",
    "smiling, wearing glasses, in the city at night, comic",
    "sad, wearing headphones, in a forest, watercolour",
    "surprised, wearing a scarf, in a studio, sepia",
    "calm, wearing glasses, in the mountains, watercolour",
    "smiling, wearing headphones, at sunset, photo",
    "sad, wearing a hat, at the beach, sepia",
    "surprised, wearing a scarf, in the city at night, comic",
)
"""What the start's pictures show, in plain words that every base knows, those of the miniature among them."""
_STEPS = 6
_GUIDANCE_SCALE = 3.0
_STREAM = 500_009
"""Keeps these draws apart from those of the reference's samples."""


@dataclass(frozen=True, eq=False)
class Preserved:
    """Everything the start put out on the way to its pictures, k contexts by s steps."""

    prompts: Prompts
    noisy: Tensor
    """(rows, k, s, c, h, w)"""
    outputs: Tensor
    """likewise"""
    timesteps: Tensor
    """(s,)"""
    has_start: Tensor
    """(rows,), 1 where there is something to preserve"""
    seed: int

    def samples(self, step: int, count: int) -> Samples:
        """`count` of them for a step of the training; they depend on seed and step alone."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + _STREAM + step)
        context = torch.randint(len(CONTEXTS), (count,), generator=generator)
        # One from each part of the way: a step of few samples still sees all of it.
        share = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        on_way = (share * len(self.timesteps)).long()
        rows = torch.arange(len(self.noisy))[:, None] * self.prompts.each
        return Samples(
            self.noisy[:, context, on_way], self.timesteps[on_way], self.outputs[:, context, on_way], rows + context
        )


@torch.no_grad()
def draw_preserved(
    base: Base,
    adapters: TrainableAdapters,
    names: Sequence[str],
    has_start: Sequence[bool],
    *,
    side: int,
    seed: int,
    at_once: int,
    between: Callable[[], None],
) -> Preserved:
    """Draw the start's pictures.

    Args:
        base: nothing of it is changed.
        adapters: as they start.
        names: how prompts call each row's subject.
        has_start: which rows start from an identity.
        side: of the latents.
        seed: of the pictures' noise, and of which samples each step takes.
        at_once: contexts drawn at once; memory grows with them.
        between: called between denoising steps; raising there stops.
    """
    prompts = Prompts.encoded(base, [f"{name}, {context}" for name in names for context in CONTEXTS], len(CONTEXTS))
    generator = torch.Generator().manual_seed(seed * 1_000_003 + _STREAM - 1)
    noise = torch.randn(len(CONTEXTS), base.family.latent_channels, side, side, generator=generator)
    timesteps = torch.linspace(len(base.alphas_cumprod) - 1, 0, _STEPS + 1).round().long()[:-1]
    nothing = base.encode_prompt([""])
    noisy, outputs = [], []
    for first in range(0, len(CONTEXTS), at_once):
        part = torch.arange(len(CONTEXTS))[first : first + at_once]
        rows = (torch.arange(len(names))[:, None] * len(CONTEXTS) + part).flatten()
        latents = noise[part].repeat(len(names), 1, 1, 1).to(base.device)
        seen, put_out = [], []
        for index, timestep in enumerate(timesteps):
            between()
            every = timestep.repeat(len(latents))
            with personalized(base, adapters, prompts, len(part)) as conditioning:
                output = base.predict(latents, every, conditioning[rows])
            seen.append(latents)
            put_out.append(output)
            if index + 1 < len(timesteps):
                without = base.predict(latents, every, nothing[[0] * len(latents)])
                guided = without + _GUIDANCE_SCALE * (output - without)
                latents = ddim_step(base, guided, latents, timestep, timesteps[index + 1])
        shape = (len(names), len(part))
        noisy.append(torch.stack(seen, 1).unflatten(0, shape))
        outputs.append(torch.stack(put_out, 1).unflatten(0, shape))
    return Preserved(
        prompts, torch.cat(noisy, 1), torch.cat(outputs, 1), timesteps, torch.tensor(has_start).to(latents), seed
    )
