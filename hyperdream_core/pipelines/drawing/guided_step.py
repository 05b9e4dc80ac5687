"""One step of guided sampling: which predictions it takes, and what becomes of them; knows no host.

A sampler asks for two predictions, with the prompt and with the negative one, and goes on with

    null + scale * (prompt - null)

Guidance here mixes up to four: base and personalised model, each with both prompts. So each of the two questions is
answered by a mix of branches, and the scale is set, such that the sampler's own formula gives the mix that is wanted.
All hosts and `draw` work that way, on clean samples, the words that every sampler understands.

An example: `hybrid` with base_scale 5 and subject_scale 2 wants

    -4 base_null + 3 base_prompt + 2 subject_prompt

The weights of the prompted branches sum to 5 and those of the others to -4, as they always sum to 1 together. Hence
scale = 5, the prompt's answer is (3 base_prompt + 2 subject_prompt) / 5 and null's is base_null: three parts of a step,
in one call of the UNet. A part is one prediction of every picture under one adapter; where people have masks, a
subject's branch is made of a part for each, and of the base's around them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...errors import ConfigError
from ...ops.changes import LayerChange
from ...ops.guidance import BranchWeights, combine, composed, rescale
from .guidance_config import GuidanceConfig, Guide
from .subjects import Pairs, ResolvedSubject, fitted_masks

PROMPT, NULL = "prompt", "null"

Key = tuple[str, int | None]
"""Whose prompt, `PROMPT` or `NULL`, and which subject's wording and adapter; None is the base."""


@dataclass(frozen=True, eq=False)
class Part:
    """One prediction of every picture."""

    key: Key
    pairs: Pairs
    """of the UNet's layers"""
    strength: float
    text: Pairs = field(default_factory=dict)
    """of the text encoders' layers, for who encodes the prompts; in most hosts somebody else has"""


def strengths_by_adapter(parts: Sequence[Part]) -> list[tuple[Pairs, list[float]]]:
    """Every adapter that acts in parts side by side, and its strength in each of them, 0 where another acts."""
    adapters = {id(part.pairs): part.pairs for part in parts if part.pairs and part.strength != 0}
    return [
        (pairs, [part.strength if id(part.pairs) == number else 0.0 for part in parts])
        for number, pairs in adapters.items()
    ]


@dataclass(frozen=True, eq=False)
class Answers:
    """What a sampler is given, as weights of branches, and what it shall multiply the difference by."""

    scale: float
    weights: Mapping[str, BranchWeights]
    """of `PROMPT` and `NULL`"""


def answers(weights: BranchWeights, is_whole: bool = False) -> Answers:
    """The two answers that make null + scale * (prompt - null) the mix of these weights.

    Where one side has no weight, or `is_whole`, both are the mix itself, and the sampler asks for one of them.
    """
    null = weights.base_null + weights.subject_null
    prompt = weights.base_prompt + weights.subject_prompt
    if is_whole or null == 0 or prompt == 0:
        return Answers(1.0, {PROMPT: weights, NULL: weights})
    return Answers(
        prompt,
        {
            PROMPT: BranchWeights(
                base_prompt=weights.base_prompt / prompt, subject_prompt=weights.subject_prompt / prompt
            ),
            NULL: BranchWeights(base_null=weights.base_null / null, subject_null=weights.subject_null / null),
        },
    )


class Guidance:
    """How base and subjects take part, at all noise levels and scales.

    Args:
        config: its `guidance_scale` is the sampler's, given at each step.
        subjects: their pairs named as the UNet names its layers; several have a mask each.
    """

    def __init__(self, config: GuidanceConfig, subjects: Sequence[ResolvedSubject]) -> None:
        self.config, self.subjects = config, list(subjects)
        self._placed: tuple[torch.device, list[ResolvedSubject]] | None = None
        self._masks: tuple[tuple[int, int], Tensor] | None = None

    def step(self, t: float, scale: float, device: torch.device) -> GuidedStep:
        """What happens at noise level `t` under a sampler's guidance scale."""
        if self._placed is None or self._placed[0] != device:
            self._placed = device, [_on(subject, device) for subject in self.subjects]
        return GuidedStep(self, self._placed[1], Guide(replace(self.config, guidance_scale=scale)), t)

    def leave_device(self) -> None:
        """Give back what was placed there for a run."""
        self._placed = None

    def masks(self, latents: Tensor) -> Tensor | None:
        """Where each subject is, (s, h, w) at the size of latents (b, c, h, w); None is everywhere.

        Raises:
            ConfigError: masks of other proportions, outside 0..1, or that overlap.
        """
        found = [subject.mask for subject in self.subjects if subject.mask is not None]
        if not found:
            return None
        height, width = latents.shape[-2:]
        if self._masks is None or self._masks[0] != (height, width):
            small = [_fitted(mask, (height, width), f"{n} of {len(found)}") for n, mask in enumerate(found, start=1)]
            self._masks = (height, width), fitted_masks(small, (height, width), (height, width))
        return self._masks[1].to(latents)


class GuidedStep:
    """The predictions at one noise level.

    Args:
        guidance: of the run.
        subjects: its subjects, on the sampler's device.
        guide: its weights under the sampler's scale.
        t: noise level.
    """

    def __init__(self, guidance: Guidance, subjects: Sequence[ResolvedSubject], guide: Guide, t: float) -> None:
        self._guidance, self._subjects = guidance, subjects
        self._mix = guide.at(t, any(subject.pairs[subject.band(t)] for subject in subjects))
        # Once a step: parts with one adapter hold the same object.
        self._pairs = [(subject.unet_pairs(t), subject.text_pairs(t)) for subject in subjects]
        self._has_adapter = [bool(subject.pairs[subject.band(t)]) for subject in subjects]
        self._answers = answers(self._mix.weights, is_whole=guidance.config.rescale > 0)

    @property
    def scale(self) -> float:
        """What the sampler shall multiply the difference of its two predictions by."""
        return self._answers.scale

    @property
    def needs_null(self) -> bool:
        """Whether the negative prompt is needed."""
        return self.scale != 1 or any(name.endswith("null") for name in self._mix.weights.used)

    def parts(self, wanted: Sequence[str | None], latents: Tensor) -> list[Part]:
        """The predictions that `answer` evaluates for the same arguments; nothing that does not count is among them."""
        has_masks = self._guidance.masks(latents) is not None
        asked = [self._answers.weights[one] for one in wanted if one is not None]
        return list({part.key: part for weights in asked for part in self._parts(weights, has_masks)}.values())

    def answer(
        self,
        wanted: Sequence[str | None],
        latents: Tensor,
        evaluate: Callable[[Sequence[Part]], Sequence[Tensor]],
    ) -> list[Tensor]:
        """What a sampler has asked for, (b, c, h, w) each.

        Args:
            wanted: `PROMPT`, `NULL`, or None for what nobody looks at.
            latents: (b, c, h, w), noisy.
            evaluate: the clean samples (b, c, h, w) of parts, from one call of the UNet.
        """
        masks = self._guidance.masks(latents)
        parts = self.parts(wanted, latents)
        outputs = dict(zip((part.key for part in parts), evaluate(parts), strict=True)) if parts else {}
        found: dict[str, Tensor] = {}
        for one in dict.fromkeys(one for one in wanted if one is not None):
            weights = self._answers.weights[one]
            branches = {name: self._branch(name, outputs, masks) for name in weights.used}
            found[one] = self._rescaled(combine(branches, weights), branches)
        return [torch.zeros_like(latents) if one is None else found[one] for one in wanted]

    def guided(self, latents: Tensor, evaluate: Callable[[Sequence[Part]], Sequence[Tensor]]) -> Tensor:
        """The guided samples (b, c, h, w), for whoever needs no other formula; arguments as `answer`'s."""
        if self.scale == 1:
            return self.answer([PROMPT], latents, evaluate)[0]
        prompt, null = self.answer([PROMPT, NULL], latents, evaluate)
        return null + self.scale * (prompt - null)

    def _parts(self, weights: BranchWeights, has_masks: bool) -> Iterator[Part]:
        for branch in weights.used:
            kind = branch.partition("_")[2]
            # Around the masks every subject's branch is the base's.
            if branch.startswith("base") or has_masks or not self._subjects:
                yield Part((kind, None), {}, 0.0)
            if branch.startswith("subject"):
                yield from (self._subject_part(kind, index) for index in range(len(self._subjects)))

    def _subject_part(self, kind: str, index: int) -> Part:
        (pairs, text), strength = self._pairs[index], self._guidance.config.strength
        if kind == NULL:
            strength *= self._mix.null_strength
            if self._guidance.config.guidance == "reference-null" and self._has_adapter[index]:
                pairs, text = self._subjects[index].neutral_parts()
        return Part((kind, index), pairs, strength, text)

    def _branch(self, branch: str, outputs: Mapping[Key, Tensor], masks: Tensor | None) -> Tensor:
        kind = branch.partition("_")[2]
        if branch.startswith("base") or not self._subjects:
            return outputs[(kind, None)]
        if masks is None:
            return outputs[(kind, 0)]
        each = torch.stack([outputs[(kind, index)] for index in range(len(self._subjects))])
        return composed(outputs[(kind, None)], each, masks)

    def _rescaled(self, guided: Tensor, branches: Mapping[str, Tensor]) -> Tensor:
        share = self._guidance.config.rescale
        prompted = branches.get("subject_prompt", branches.get("base_prompt"))
        return guided if share == 0 or prompted is None else rescale(guided, prompted, share)


def _on(subject: ResolvedSubject, device: torch.device) -> ResolvedSubject:
    def moved(pairs: Pairs) -> dict[str, LayerChange]:
        return {name: pair.to(device) for name, pair in pairs.items()}

    return replace(subject, pairs=tuple(moved(one) for one in subject.pairs), neutral=moved(subject.neutral))


def _fitted(mask: Tensor, size: tuple[int, int], which: str) -> Tensor:
    """A mask (h, w) averaged to the latents' size, so that one mask serves a picture and its enlargement."""
    height, width = mask.shape
    wanted = height * size[1] / size[0]
    # A picture's sides are whole latents; a mask drawn on it may be off by less than one.
    if abs(width - wanted) * size[1] > wanted:
        raise ConfigError(
            f"mask {which} is {width} wide and {height} high, but the pictures are {size[1]} to {size[0]}; draw it on "
            "a picture of their size, or crop it to their proportions"
        )
    return torch.nn.functional.adaptive_avg_pool2d(mask.float()[None], size)[0]
