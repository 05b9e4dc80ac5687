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
from ..drawing.few_steps import guided_by_outputs
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
    t: Tensor
    """(s,) noise levels"""
    has_start: Tensor
    """(rows,), 1 where there is something to preserve"""
    seed: int

    def samples(self, step: int, count: int) -> Samples:
        """`count` of them for a step of the training; they depend on seed and step alone."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + _STREAM + step)
        context = torch.randint(len(CONTEXTS), (count,), generator=generator)
        # One from each part of the way: a step of few samples still sees all of it.
        share = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        on_way = (share * len(self.t)).long()
        rows = torch.arange(len(self.noisy))[:, None] * self.prompts.each
        return Samples(self.noisy[:, context, on_way], self.t[on_way], self.outputs[:, context, on_way], rows + context)


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
    noisy, outputs = [], []
    for contexts in torch.arange(len(CONTEXTS)).split(at_once):
        given, put_out = _way(base, adapters, prompts, contexts, noise[contexts], between)
        noisy.append(given)
        outputs.append(put_out)
    flags = torch.tensor(has_start).to(outputs[0])
    return Preserved(prompts, torch.cat(noisy, 1), torch.cat(outputs, 1), base.noise.levels(_STEPS), flags, seed)


def _way(
    base: Base,
    adapters: TrainableAdapters,
    prompts: Prompts,
    contexts: Tensor,
    noise: Tensor,
    between: Callable[[], None],
) -> tuple[Tensor, Tensor]:
    """What the base is given on the way from noise (k, ...) to pictures of contexts (k,), and what it puts out there.

    Both are (rows, k, s, c, h, w).
    """
    rows = torch.arange(0, len(prompts.texts), prompts.each)
    of_each = (rows[:, None] + contexts).flatten()
    nothing = base.encode_prompt([""])[[0] * len(of_each)]
    given: list[Tensor] = []
    put_out: list[Tensor] = []

    def both(latents: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        between()
        every = t.expand(len(latents))
        with personalized(base, adapters, prompts, len(contexts)) as conditioning:
            output = base.predict(latents, every, conditioning[of_each])
        given.append(latents)
        put_out.append(output)
        # The pictures themselves are looked at by nobody, so that the last step goes without guidance.
        return output, output if len(given) == _STEPS else base.predict(latents, every, nothing)

    guided_by_outputs(base, noise.repeat(len(rows), 1, 1, 1).to(base.device), _STEPS, both)
    shape = (len(rows), len(contexts))
    return torch.stack(given, 1).unflatten(0, shape), torch.stack(put_out, 1).unflatten(0, shape)
