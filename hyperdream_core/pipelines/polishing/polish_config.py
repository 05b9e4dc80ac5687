"""The settings of polishing, each with what it does and what was seen of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ...bases import TARGET_SETS
from ...config import check_at_most
from ...errors import ConfigError
from ..before_work import check_words

STEPS_AFTER_PREDICTION, STEPS_FROM_SCRATCH = 40, 200
"""Where nobody says otherwise: HyperDreamBooth's 40, and what plain LoRAs of a person are trained for at the least."""


@dataclass(frozen=True, kw_only=True)
class PolishConfig:
    """Settings of one polishing run."""

    steps: int | None = None
    """Optimiser steps; 0 keeps the prediction as it is. Left out: 40 after a prediction, 200 from scratch. On the
    miniature 20 gain as much as 40."""
    rank: int = 4
    """Rank of the fresh adapter that is trained on top of the prediction."""
    learning_rate: float = 2.2e-2
    """AdamW's rate at the first step; it falls to 0 along half a cosine. Higher ones find a likeness sooner and forget
    more of the prompt."""
    rate_unit: Literal["output", "coefficient"] = "output"
    """What the learning rate counts in: `output`, the share of itself by which a step at this rate changes each layer's
    output, measured on this base and these pictures; `coefficient`, plain coefficients, as 0.1.0 did with 1.2e-2."""
    batch: int = 8
    """Noise draws of the subject's pictures in a step."""
    noise_power: float = 1.3
    """Noise levels are drawn with density power * t ** (power - 1): 1 is uniform, more favours high noise, where
    identity is decided."""
    crops: int = 0
    """Slightly shifted and zoomed copies of each picture that are trained on besides it, against learning its framing
    in long trainings. In a short one they blur: with 3 of them eyes and mouth fade."""
    jitter: float = 0.04
    """Largest shift and zoom of these copies, as a share of the picture's side."""
    background_weight: float = 0.1
    """Weight, in the loss, of what is around the head, which a prepared crop has in its middle; below 1 less of the
    place is learnt, and 1 is right where the head is elsewhere. At a learning rate of 2e-2, 32 of the miniature's
    people reach similarity 0.775 at attributes 0.982 with 0.1 in 20 steps, and 0.764 at 0.978 with 1."""
    preserve: float = 0.5
    """Weight, in the loss, of drawing other contexts as the start draws them; 0 lets the picture's own context creep
    into all of them. Without a start there is nothing to preserve. On 32 of the miniature's people 40 steps reach
    similarity 0.778 at attributes 0.975 with 0.5, and 0.780 at 0.953 with 0.25."""
    preserve_batch: int = 8
    """Samples of that in a step."""
    samples_at_once: int = 4
    """Samples that share a forward pass; fewer take less memory and give the same result up to rounding."""
    anchor: float = 0.0
    """Weight of the squared distance (Frobenius) from the prediction in the loss."""
    file_rank: int = 4
    """Largest rank of the result, reached by leaving out each layer's smallest singular values; 0 keeps all. At 4 a
    polished identity of the miniature takes 93 KB."""
    holdout_every: int = 0
    """Steps between looks at a held-out crop, of which the best result is kept; 0 keeps the last step's."""
    patience: int = 3
    """Looks without improvement after which training stops early."""
    save_every: int = 10
    """Steps between checkpoints, if a checkpoint file is named."""
    target_set: str = "attention"
    """Layers to adapt when there is no prediction to start from; a prediction brings its own."""
    down_dim: int = 50
    """Basis size on the input side, likewise."""
    up_dim: int = 100
    """Basis size on the output side, likewise."""
    identifier: str = "sks"
    """The rare word that will stand for the subject, likewise."""
    class_noun: str = "face"
    """What kind of thing the subject is, likewise."""
    seed: int = 0
    """Seed of the fresh adapter, crops, noise and noise levels."""

    def __post_init__(self) -> None:
        for name in ("rank", "batch", "patience", "save_every", "down_dim", "up_dim", "preserve_batch",
                     "samples_at_once"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("crops", "background_weight", "preserve", "anchor", "file_rank", "holdout_every", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.steps is not None and self.steps < 0:
            raise ConfigError(f"steps must be 0 or more, got {self.steps}")
        if not 0 < self.learning_rate < 1:
            raise ConfigError(f"learning_rate must lie between 0 and 1, got {self.learning_rate}")
        if not self.noise_power > 0:
            raise ConfigError(f"noise_power must be above 0, got {self.noise_power}; 1 is uniform")
        if not 0 <= self.jitter <= 0.25:
            raise ConfigError(f"jitter must lie in 0..0.25, got {self.jitter}")
        check_words(self.identifier, self.class_noun)
        check_at_most(
            self, steps=1_000_000, rank=1024, batch=1024, preserve_batch=1024, samples_at_once=1024, crops=1000,
            file_rank=1024, down_dim=4096, up_dim=4096, preserve=1000, anchor=1e6, noise_power=100,
            background_weight=1000, seed=2**63 - 1,
        )  # fmt: skip
        if self.target_set not in TARGET_SETS:
            raise ConfigError(f"unknown target set {self.target_set!r}; known: {', '.join(TARGET_SETS)}")

    def steps_from(self, has_start: bool) -> int:
        """How many steps it stands for, by whether there is a prediction to start from."""
        if self.steps is not None:
            return self.steps
        return STEPS_AFTER_PREDICTION if has_start else STEPS_FROM_SCRATCH


def as_in_0_1_0(config: PolishConfig) -> PolishConfig:
    """What 0.1.0 did with these settings: as many steps from scratch as after a prediction, of its own size.

    It counted its learning rate in plain coefficients, and 1.2e-2 was its default.
    """
    is_default = config.learning_rate == PolishConfig.learning_rate
    return replace(
        config,
        steps=STEPS_AFTER_PREDICTION if config.steps is None else config.steps,
        rate_unit="coefficient",
        learning_rate=1.2e-2 if is_default else config.learning_rate,
    )
