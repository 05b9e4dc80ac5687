"""How the base and the personalised model take part in a picture: the settings, and the weights at a noise level."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from ...config import check_at_most
from ...errors import ConfigError
from ...ops.bands import parse_schedule
from ...ops.guidance import PRESETS, BranchWeights, Dials, branch_weights, preset_weights


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """Settings of how the base and the adapter take part in a picture."""

    guidance: Literal["plain", "hybrid", "base-null", "mix", "blend", "reference-null", "weights"] = "base-null"
    """Which predictions are mixed at each step. plain: the personalised model's with and without the prompt. hybrid:
    the base's guidance at base_scale, and subject_scale times the way from the base to the personalised model.
    base-null: as plain, but away from the base. mix: guidance at base_scale towards base and subject, of which
    subject_scale (0..1) is the subject's share. blend: the base's guidance at base_scale, and subject_scale (0..1) of
    the way to plain. reference-null: as plain, but away from a neutral reference's adapter. weights: branch_weights."""
    guidance_scale: float = 3.0
    """How far to follow the prompt; 1 does not guide, and takes half the time."""
    base_scale: float | None = None
    """How far the base leads in hybrid, mix and blend; guidance_scale if left out."""
    subject_scale: float | None = None
    """How far the subject leads there; 0 is the base alone. If left out: guidance_scale in hybrid, 1 in mix and
    blend."""
    schedule: str = ""
    """Factors on subject_scale over the noise level, 0 clean to 1 noise: bands such as '0-0.5:1, 0.5-1:0', points of a
    smooth curve such as '0=1, 0.6=1, 1=0', or 'default'. 'base ...; subject ...' sets both dials."""
    null_strength: float | None = None
    """Share of the adapter's strength (0..1) in the branch that guidance leads away from. If left out: 1 in plain,
    blend and reference-null, 0 elsewhere."""
    rescale: float = 0.0
    """Share of the way (0..1) to the contrast that the picture had without guidance; 0.7 mends washed-out or glaring
    pictures at high scales."""
    branch_weights: tuple[float, ...] = ()
    """Own weights for guidance 'weights', summing to 1: of the base without and with the prompt, and of the
    personalised model without and with it."""
    strength: float = 1.0
    """How much of the adapter to apply: 0 is the base, 1 as trained."""
    active: tuple[float, ...] = (0.0, 1.0)
    """Noise levels [start, end) at which the adapter acts."""
    rank_share: float = 1.0
    """Share of the adapter's rank that acts in pure noise; it grows to all of it as noise goes (T-LoRA). 1 uses all
    of it always."""

    def __post_init__(self) -> None:
        for name in ("guidance_scale", "base_scale", "subject_scale"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} must be 0 or more, got {value}")
        check_at_most(self, guidance_scale=1000, base_scale=1000, subject_scale=1000, strength=100)
        for name in ("null_strength", "rescale", "rank_share"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name} must lie in 0..1, got {value}")
        if len(self.active) != 2 or not 0 <= self.active[0] < self.active[1] <= 1:
            shown = " ".join(f"{level:g}" for level in self.active)
            raise ConfigError(f"active must be two noise levels from 0 to 1, start before end, got {shown}")
        if self.guidance != "weights" and self.guidance not in PRESETS:
            raise ConfigError(f"unknown guidance {self.guidance!r}; known: {', '.join(PRESETS)}, weights")
        self._check_dials()
        # Refused here, before anything is loaded.
        Guide(self)

    def _check_dials(self) -> None:
        has_dials = self.guidance in PRESETS and PRESETS[self.guidance].has_dials
        for name in ("base_scale", "subject_scale", "schedule"):
            if not has_dials and getattr(self, name) not in (None, ""):
                able = ", ".join(name for name, preset in PRESETS.items() if preset.has_dials)
                raise ConfigError(f"guidance {self.guidance!r} has no dials, so {name} does nothing; use {able}")
        if self.guidance != "weights" and self.branch_weights:
            raise ConfigError(f"branch weights belong to guidance 'weights', got guidance {self.guidance!r}; set it")


@dataclass(frozen=True)
class Mix:
    """What is mixed at one noise level."""

    weights: BranchWeights
    null_strength: float
    """of the subject_null branch, as a share of the adapter's"""


class Guide:
    """The weights at each noise level that a configuration stands for."""

    def __init__(self, config: GuidanceConfig) -> None:
        self.config = config
        self.own = branch_weights(config.branch_weights) if config.guidance == "weights" else None
        self.schedules = parse_schedule(config.schedule)

    def at(self, t: float, is_active: bool = True) -> Mix:
        """The mix at noise level `t`; where no adapter is active, the subject's dial is at 0.

        Without dials nothing changes there: the personalised model is the base then, with the personalised prompt.
        """
        config = self.config
        if self.own is not None:
            return Mix(self.own, 1.0 if config.null_strength is None else config.null_strength)
        preset = PRESETS[config.guidance]
        dials = self._dials(t)
        if not is_active:
            dials = replace(dials, subject_scale=0.0)
        null_strength = preset.null_strength if config.null_strength is None else config.null_strength
        if preset.has_dials:
            null_strength *= preset.share(dials)
        return Mix(preset_weights(preset, dials, null_strength), null_strength)

    def _dials(self, t: float) -> Dials:
        config, scale = self.config, self.config.guidance_scale
        subject_default = PRESETS[config.guidance].subject_scale
        base = scale if config.base_scale is None else config.base_scale
        subject = config.subject_scale
        if subject is None:
            subject = scale if subject_default is None else subject_default
        factors = {name: schedule.at(t) for name, schedule in self.schedules.items()}
        return Dials(
            guidance_scale=scale,
            base_scale=base * factors.get("base", 1.0),
            subject_scale=subject * factors.get("subject", 1.0),
        )
