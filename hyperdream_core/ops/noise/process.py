"""A noise process: how noise gets into a picture, and what the network that takes it out again is asked for.

At a noise level t four numbers say it all:

    noisy  = signal * clean + spread * noise            what the network is given
    output = of_clean * clean + of_noise * noise        what it shall put out

                        signal           spread               of_clean    of_noise
    epsilon             sqrt(alpha_bar)  sqrt(1 - alpha_bar)  0           1
    v_prediction        the same         the same             -spread     signal
    sample              the same         the same             1           0
    rectified flow      1 - t            t                    -1          1

These are two equations in `clean` and `noise`, so that both are found from what a network was given and puts out. For
v_prediction in pure noise (signal 0, spread 1) the second one reads output = -clean: nothing is divided by 0.

The division of labour is that of k-diffusion's `external.py`: one wrapper for a network, samplers that know no other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Coefficients:
    """The four numbers at noise levels (b,), each (b,) in float32 or wider."""

    signal: Tensor
    spread: Tensor
    of_clean: Tensor
    of_noise: Tensor

    @property
    def determinant(self) -> Tensor:
        """Of the two equations, (b,); 0 would say that the output tells nothing of the picture."""
        return self.signal * self.of_noise - self.spread * self.of_clean

    def shaped_as(self, like: Tensor) -> Coefficients:
        """The same, shaped to multiply (b, ...), on its device and in its dtype."""

        def shaped(one: Tensor) -> Tensor:
            return one.reshape(-1, *[1] * (like.ndim - 1)).to(like.device, like.dtype)

        return Coefficients(shaped(self.signal), shaped(self.spread), shaped(self.of_clean), shaped(self.of_noise))


class NoiseProcess(ABC):
    """What all know of a base's noise: samplers, training, and whoever asks the base for a prediction.

    In all methods `t` is (b,), or (1,) for one level of all samples; the other tensors are (b, ...).
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """What the network puts out, in diffusers' words: `epsilon`, `v_prediction`, `sample` or `flow`."""

    @abstractmethod
    def coefficients(self, t: Tensor) -> Coefficients:
        """The four numbers at levels (b,), on their device."""

    @abstractmethod
    def model_time(self, t: Tensor) -> Tensor:
        """What the network is told of the levels, (b,); only for the adapter that calls it."""

    @abstractmethod
    def levels(self, steps: int) -> Tensor:
        """Where a sampler of so many steps asks the network: (steps,) float32 from pure noise down, without 0."""

    def noisy(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Clean samples with noise of unit variance."""
        at = self.coefficients(t).shaped_as(clean)
        return at.signal * clean + at.spread * noise

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network shall put out for them."""
        at = self.coefficients(t).shaped_as(clean)
        return at.of_clean * clean + at.of_noise * noise

    def clean(self, output: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """The clean samples that an output stands for."""
        at = self.coefficients(t).shaped_as(noisy)
        return (at.of_noise * noisy - at.spread * output) / at.determinant

    def noise(self, output: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """The noise that an output stands for."""
        at = self.coefficients(t).shaped_as(noisy)
        return (at.signal * output - at.of_clean * noisy) / at.determinant
