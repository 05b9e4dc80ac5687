"""The parts of a guided step in one call of the UNet: base and personalised predictions side by side.

Each row of the batch has its own adapter at its own strength, and its own encoding of its own wording.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor

from ..base import Base, Conditioning
from ..prompts import without_identifier
from .guided_step import NULL, Part, strengths_by_adapter


class PartPredictions:
    """What a base sees in noisy latents, part by part.

    Args:
        base: to draw with.
        prompts: b of them, with the identifiers.
        negative_prompt: of all.
        identifiers: words that the base alone is not asked for.
    """

    def __init__(self, base: Base, prompts: Sequence[str], negative_prompt: str, identifiers: Sequence[str]) -> None:
        self._base, self._prompts = base, list(prompts)
        self._negative = [negative_prompt] * len(self._prompts)
        self._of_base = self._prompts
        for identifier in identifiers:
            self._of_base = [without_identifier(prompt, identifier) for prompt in self._of_base]
        self._encoded: dict[tuple[object, ...], Conditioning] = {}

    def clean(self, parts: Sequence[Part], latents: Tensor, t: Tensor) -> list[Tensor]:
        """The clean samples (b, c, h, w) of each part, for latents (b, c, h, w) at a noise level (1,)."""
        each = len(parts)
        # The rows of a picture lie side by side, so that they can share its adapter.
        conditioning = Conditioning.interleave(*(self._conditioning(part) for part in parts))
        noisy = latents.repeat_interleave(each, 0) if each > 1 else latents
        with adapted_parts(self._base, parts, len(latents)):
            output = self._base.predict(noisy, t.expand(len(noisy)), conditioning)
        clean = self._base.noise.clean(output, noisy, t)
        return [clean[index::each] for index in range(each)]

    def _conditioning(self, part: Part) -> Conditioning:
        """A part's prompts as its text encoder encodes them, once and only if a step needs them."""
        kind, subject = part.key
        prompts = self._negative if kind == NULL else self._of_base if subject is None else self._prompts
        is_adapted = bool(part.text) and part.strength != 0
        # A subject keeps its pairs for the whole run, so that their identities tell bands apart.
        adapter = (part.strength, *(id(pair) for pair in part.text.values())) if is_adapted else ()
        place = (tuple(prompts), *adapter)
        if place not in self._encoded:
            with self._base.adapted(part.text, part.strength) if is_adapted else nullcontext():
                self._encoded[place] = self._base.encode_prompt(prompts)
        return self._encoded[place]


@contextmanager
def adapted_parts(base: Base, parts: Sequence[Part], pictures: int) -> Iterator[None]:
    """Run a batch of pictures with a row for each of the parts, side by side, and each part's adapter on its rows."""
    with ExitStack() as stack:
        for pairs, strengths in strengths_by_adapter(parts):
            if len(set(strengths)) == 1:
                stack.enter_context(base.adapted(pairs, strengths[0], len(parts)))
            else:
                own = {name: pair.repeat_each(len(parts)) for name, pair in pairs.items()}
                stack.enter_context(base.adapted(own, torch.tensor(strengths).repeat(pictures)))
        yield
