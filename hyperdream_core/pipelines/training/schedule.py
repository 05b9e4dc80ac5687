"""Settings of a training, the learning rate of each of its steps, and where each step's random numbers come from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ...config import check_at_most, config_to_json
from ...errors import ConfigError

CYCLE_SEEDS = 1000
"""Between the seeds of two cycles, so that the second does not see the first one's batches again."""
_PROCESSES = 64
"""Processes for which the numbers of a step are what they have always been; more get a wider grid."""
_HOW_ONLY = ("save_every", "micro_batch", "recompute", "compiler")
"""Settings of how a training is carried out; the others decide what comes of it, up to rounding."""
_NEW = {"batch": 0, "precision": "fp32"}
"""Settings that checkpoints of older releases do not name, as they were then."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of one training run."""

    steps: int
    """Optimiser steps of one cycle."""
    learning_rate: float = 1e-3
    """Peak learning rate of the first cycle; warmed up linearly, then decayed along a cosine."""
    cycle_decay: float = 0.7
    """Peak learning rate of a cycle over that of the one before."""
    warmup: int = 100
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's averaging horizons; 0.99 follows short runs better than 0.999."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    ema_share: float = 0.06
    """Averaging horizon of the weights as a share of a cycle's steps; longer lags behind in short runs."""
    seed: int = 0
    """Seed of data order, noise and dropout."""
    save_every: int = 200
    """Steps between checkpoints; the last one is kept."""
    batch: int = 0
    """Rows of one step, over all processes and whatever fits at once; 0 draws a batch of its own in each process."""
    micro_batch: int = 0
    """Rows that a process computes at once; fewer take less memory, for the same result. 0 takes all of its share."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Numbers of the network's forward and backward pass; its weights, averages and the optimiser stay in fp32."""
    recompute: bool = False
    """Compute the insides of the base's blocks twice rather than keep them: less memory, a third more time."""
    compiler: str = ""
    """Backend of torch.compile, such as inductor; empty compiles nothing."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps must be 1 or more, got {self.steps}")
        if not 0.0 < self.learning_rate < 1.0:
            raise ConfigError(f"learning_rate must lie between 0 and 1, got {self.learning_rate}")
        if self.batch < 0 or self.micro_batch < 0:
            raise ConfigError(f"batch and micro_batch must be 0 or more, got {self.batch} and {self.micro_batch}")
        if self.micro_batch and not self.batch:
            raise ConfigError(f"micro_batch {self.micro_batch} divides a batch, and none is named; name batch, too")
        if self.save_every < 1:
            raise ConfigError(f"save_every must be 1 or more, got {self.save_every}")
        check_at_most(self, steps=10**9, batch=10**6, micro_batch=10**6)


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Learning rate at a step, counted over all cycles: in each a linear warm-up, then half a cosine."""
    cycle, step = divmod(step, config.steps)
    peak = config.learning_rate * config.cycle_decay**cycle
    if step < config.warmup:
        return peak * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def step_generator(seed: int, step: int, process: int = 0, processes: int = 1) -> torch.Generator:
    """The generator of one step of one process.

    No two steps and processes of a training share one, as long as steps times processes stay below 2^32: of a seed,
    torch's generator on the CPU knows the last 32 bits only, and these are counted up here, not drawn.
    """
    stride = _PROCESSES
    while stride < processes:
        stride *= 2
    # Any whole number is a seed: torch itself refuses those beyond 64 bits.
    return torch.Generator().manual_seed(((seed * 1_000_003 + step) * stride + process) % 2**63)


def deciding(config: TrainingConfig) -> dict[str, Any]:
    """The settings that decide a training's result, as JSON values."""
    values = {name: value for name, value in config_to_json(config).items() if name not in _HOW_ONLY}
    return {name: value for name, value in values.items() if name not in _NEW or value != _NEW[name]}
