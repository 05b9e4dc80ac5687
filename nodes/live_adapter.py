"""An identity that acts while the UNet runs, instead of in its weights: in a part of sampling, or on 8-bit weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..hyperdream_core.models.adapted_linear import live
from ..hyperdream_core.ops.lowrank import LoraPair
from .host import patches


class LiveAdapter:
    """A wrapper around every call of the UNet that adds the identity while the noise is within a range.

    Args:
        pairs: name of the layer within the UNet -> its factors.
        strength: factor on the change.
        sigmas: highest and lowest noise level at which it acts.
    """

    def __init__(self, pairs: Mapping[str, LoraPair], strength: float, sigmas: tuple[float, float]) -> None:
        self._pairs, self._strength, self._sigmas = dict(pairs), strength, sigmas
        self._placed: tuple[torch.device, dict[str, LoraPair]] | None = None

    def __call__(self, executor: Any, x: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        """The UNet's answer, with the identity if it is time for it.

        Args:
            executor: ComfyUI's way on to the UNet, which it has as `class_obj`; the rest are the UNet's arguments.
        """
        if not self._acts(patches.options_of_call(arguments, named, "sigmas").get("sigmas")):
            return executor(x, *arguments, **named)
        # The executor knows which UNet really runs: ComfyUI may have put another copy in place.
        with live(executor.class_obj, self._on(x.device), self._strength):
            return executor(x, *arguments, **named)

    def _acts(self, levels: torch.Tensor | None) -> bool:
        if levels is None:
            return True
        highest, lowest = self._sigmas
        level = float(levels.max())
        return lowest <= level <= highest

    def _on(self, device: torch.device) -> dict[str, LoraPair]:
        if self._placed is None or self._placed[0] != device:
            self._placed = device, {name: pair.to(device) for name, pair in self._pairs.items()}
        return self._placed[1]
