"""Samplers: from noise to pictures in a few steps, knowing nothing of a base but its noise process.

Both are deterministic. They are told the clean samples that a base sees in noisy ones, and go to the next noise level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from ...errors import ConfigError
from ...ops.noise import NoiseProcess
from ..base import Base


@dataclass(frozen=True)
class Level:
    """A noise level as numbers: noisy = signal * clean + spread * noise."""

    signal: float
    spread: float

    @classmethod
    def of(cls, process: NoiseProcess, t: Tensor) -> Level:
        at = process.coefficients(t.reshape(1))
        return cls(float(at.signal), float(at.spread))

    @property
    def log_snr(self) -> float:
        """Half of it, log(signal / spread): what DPM-Solver calls lambda; -inf in pure noise."""
        return -math.inf if self.signal == 0 else math.log(self.signal / self.spread)


CLEAN = Level(1.0, 0.0)


class Sampler(Protocol):
    """One run's way from noise to clean samples."""

    def step(self, clean: Tensor, noisy: Tensor, here: Level, there: Level) -> Tensor:
        """Samples (b, ...) at the level `there`, of the clean samples that the base sees in the noisy ones `here`."""
        ...


class Ddim:
    """Straight on: the noise that is in the sample now, less of it. For a flow this is Euler's step.

    Source: Song et al., arXiv:2010.02502, without noise of its own.
    """

    def step(self, clean: Tensor, noisy: Tensor, here: Level, there: Level) -> Tensor:
        # there.signal * clean + there.spread * noise, with noise = (noisy - here.signal * clean) / here.spread.
        less = there.spread / here.spread
        return less * noisy + (there.signal - less * here.signal) * clean


class DpmPlusPlus2M:
    """DPM-Solver++ of second order: as DDIM, to clean samples that are extrapolated from the last two.

    Source: Lu et al., arXiv:2211.01095, algorithm 2 (2M).
    """

    def __init__(self) -> None:
        self._last: Tensor | None = None
        self._last_way = 0.0

    def step(self, clean: Tensor, noisy: Tensor, here: Level, there: Level) -> Tensor:
        if there == CLEAN:
            return clean
        way = there.log_snr - here.log_snr
        ahead = clean
        # From pure noise the way is infinitely long, and then nothing is known of how the samples change on it.
        if self._last is not None and 0 < self._last_way < math.inf:
            ahead = clean + 0.5 * way / self._last_way * (clean - self._last)
        self._last, self._last_way = clean, way
        return Ddim().step(ahead, noisy, here, there)


SAMPLERS: dict[str, Callable[[], Sampler]] = {"dpm++": DpmPlusPlus2M, "ddim": Ddim}


def denoise(
    process: NoiseProcess, sampler: str, steps: int, noise: Tensor, clean_at: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Clean samples (b, ...) of noise (b, ...) of unit variance.

    Args:
        process: of the base.
        sampler: one of `SAMPLERS`.
        steps: how often the base is asked.
        noise: to start from.
        clean_at: the clean samples (b, ...) that the base sees in samples (b, ...) at a noise level (1,).

    Raises:
        ConfigError: an unknown sampler.
    """
    if sampler not in SAMPLERS:
        raise ConfigError(f"unknown sampler {sampler!r}; known: {', '.join(SAMPLERS)}. Use one of them.")
    one, noisy = SAMPLERS[sampler](), noise
    levels = process.levels(steps)
    known = [*(Level.of(process, t) for t in levels), CLEAN]
    for t, (here, there) in zip(levels.split(1), pairwise(known), strict=True):
        noisy = one.step(clean_at(noisy, t), noisy, here, there)
    return noisy


def initial_noise(base: Base, seeds: Sequence[int], size: int) -> Tensor:
    """(b, c, h, w) of unit variance, on the base's device, for pictures of `size` px."""
    side = size // base.family.vae_factor
    shape = (base.family.latent_channels, side, side)
    # Drawn on the CPU: other devices give other numbers for the same seed.
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(noise).to(base.device)
