"""Guidance: up to four predictions of one noisy picture become one, with weights that sum to 1.

Because the weights sum to 1, the result is the same whether the predictions are noise, velocity or the clean sample:
at one noisy picture these are affine maps of each other. The presets by name are in docs/methods.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, fields, replace

from torch import Tensor

from ..errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BranchWeights:
    """How much each branch's prediction counts; they sum to 1, and a branch of weight 0 is never evaluated."""

    base_null: float = 0.0
    """the base with the negative prompt"""
    base_prompt: float = 0.0
    """the base with the prompt, the class noun in the subject's place"""
    subject_null: float = 0.0
    """the personalised model with the negative prompt"""
    subject_prompt: float = 0.0
    """the personalised model with the prompt that has the identifier"""

    def __post_init__(self) -> None:
        total = sum(astuple(self))
        # Four roundings of weights around 10 stay far below this, and a typing error does not.
        if not math.isfinite(total) or abs(total - 1) > 1e-4:
            shown = ", ".join(f"{weight:g}" for weight in astuple(self))
            raise ConfigError(f"the weights {shown} sum to {total:g}, expected 1; change one of them by {1 - total:g}")

    @property
    def used(self) -> dict[str, float]:
        """The branches that count, in the order of the fields."""
        return {name: getattr(self, name) for name in BRANCHES if getattr(self, name) != 0}


BRANCHES = tuple(field.name for field in fields(BranchWeights))


def combine(outputs: Mapping[str, Tensor], weights: BranchWeights) -> Tensor:
    """The guided prediction, of the branches' predictions (b, c, h, w), all of one kind.

    Source: docs/methods.md, "Guidance"; w_p0 = 1 - g, w_pc = g is classifier-free guidance, Ho and Salimans,
    arXiv:2207.12598.
    """
    total: Tensor | None = None
    for branch, weight in weights.used.items():
        part = outputs[branch] if weight == 1 else weight * outputs[branch]
        total = part if total is None else total + part
    assert total is not None, "weights that sum to 1 are not all 0"
    return total


def rescale(guided: Tensor, prompted: Tensor, share: float) -> Tensor:
    """The guided sample (b, ...) with `share` of the way (0..1) gone to the prompted one's standard deviation.

    Source: Lin et al., arXiv:2305.08891, section 3.4; they found 0.7 to work.
    """
    axes = tuple(range(1, guided.dim()))
    wide = guided.float()
    spread = wide.std(dim=axes, keepdim=True).clamp_min(1e-12)
    factor = prompted.float().std(dim=axes, keepdim=True) / spread
    return (wide * (share * factor + (1 - share))).to(guided.dtype)


def composed(base: Tensor, subjects: Tensor, masks: Tensor) -> Tensor:
    """Several subjects' predictions (s, b, c, h, w) in their masks (s, h, w), 0..1, and the base's (b, c, h, w) around.

    Where the masks sum to 1 nothing is left of the base.
    """
    masks = masks.to(base)[:, None, None]
    return base * (1 - masks.sum(0)) + (subjects * masks).sum(0)


@dataclass(frozen=True, kw_only=True)
class Dials:
    """What the presets are made of; a preset ignores what it has no use for."""

    guidance_scale: float
    base_scale: float
    subject_scale: float


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One scheme of guidance.

    `subject_scale = 0` is the base's own guidance at `base_scale`, exactly, wherever a preset has these dials.
    """

    letter: str
    """in the table of docs/methods.md"""
    weights: Callable[[Dials], BranchWeights]
    has_dials: bool
    """whether base_scale and subject_scale act; otherwise guidance_scale alone does"""
    null_strength: float
    """share of the adapter's strength in the branch that guidance leads away from: 0 is the base's own"""
    share: Callable[[Dials], float] = lambda dials: 1.0
    """how far the subject takes part, 0..1: what `null_strength` is multiplied by"""
    subject_scale: float | None = None
    """the dial's default; None takes guidance_scale"""


def _plain(dials: Dials) -> BranchWeights:
    return BranchWeights(subject_null=1 - dials.guidance_scale, subject_prompt=dials.guidance_scale)


def _hybrid(dials: Dials) -> BranchWeights:
    base, subject = dials.base_scale, dials.subject_scale
    return BranchWeights(base_null=1 - base, base_prompt=base - subject, subject_prompt=subject)


def _base_null(dials: Dials) -> BranchWeights:
    return _hybrid(replace(dials, base_scale=dials.guidance_scale, subject_scale=dials.guidance_scale))


def _mix(dials: Dials) -> BranchWeights:
    return _hybrid(replace(dials, subject_scale=dials.base_scale * dials.subject_scale))


def _blend(dials: Dials) -> BranchWeights:
    base, subject, share = dials.base_scale, dials.guidance_scale, dials.subject_scale
    return BranchWeights(
        base_null=(1 - share) * (1 - base),
        base_prompt=(1 - share) * base,
        subject_null=share * (1 - subject),
        subject_prompt=share * subject,
    )


PRESETS: dict[str, Preset] = {
    "plain": Preset(letter="A", weights=_plain, has_dials=False, null_strength=1.0),
    # The exact form of DCO's reward guidance; both dials 1 is the personalised model alone, plain guidance at 1.
    "hybrid": Preset(
        letter="B",
        weights=_hybrid,
        has_dials=True,
        null_strength=0.0,
        share=lambda dials: min(1.0, dials.subject_scale / dials.base_scale) if dials.base_scale else 1.0,
    ),
    "base-null": Preset(letter="C", weights=_base_null, has_dials=False, null_strength=0.0),
    "mix": Preset(
        letter="D",
        weights=_mix,
        has_dials=True,
        null_strength=0.0,
        share=lambda dials: min(1.0, dials.subject_scale),
        subject_scale=1.0,
    ),
    # AutoLoRA, arXiv:2410.03941; subject_scale 1 is plain guidance.
    "blend": Preset(letter="E", weights=_blend, has_dials=True, null_strength=1.0, subject_scale=1.0),
    # As plain, but the null branch has the adapter of a neutral reference.
    "reference-null": Preset(letter="F", weights=_plain, has_dials=False, null_strength=1.0),
}


def preset_weights(preset: Preset, dials: Dials, null_strength: float) -> BranchWeights:
    """The preset's weights, with the null branch in the model that has it at this `null_strength`.

    At 0 a personalised null branch is the base's; above 0 the base's becomes the personalised model's, to be evaluated
    at that share of the strength.
    """
    weights = preset.weights(dials)
    if null_strength == 0:
        return replace(weights, base_null=weights.base_null + weights.subject_null, subject_null=0.0)
    if preset.null_strength == 0:
        return replace(weights, base_null=0.0, subject_null=weights.base_null)
    return weights


def branch_weights(values: tuple[float, ...]) -> BranchWeights:
    """Four numbers in the order of `BRANCHES`.

    Raises:
        ConfigError: another number of them, or they do not sum to 1.
    """
    if len(values) != len(BRANCHES):
        raise ConfigError(f"{len(values)} branch weights, expected 4, for {', '.join(BRANCHES)}; give one for each")
    return BranchWeights(**dict(zip(BRANCHES, values, strict=True)))
