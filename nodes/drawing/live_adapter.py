"""An identity that acts while the UNet runs, instead of in its weights: over noise bands, or on 8-bit weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...hyperdream_core.bases import UNET, BaseFamily
from ...hyperdream_core.errors import ConfigError
from ...hyperdream_core.identity import Identity
from ...hyperdream_core.models.adapted_linear import live
from ...hyperdream_core.ops.bands import WHOLE, Band, find_owner, said
from ...hyperdream_core.ops.lowrank import LoraPair
from ..host import patches


def refuse_banded_text(identity: Identity, family: BaseFamily) -> None:
    """Refuse an identity that changes a text encoder in noise bands: a prompt is encoded once for all noise levels.

    Raises:
        ConfigError: names the bands.
    """
    if not identity.is_constant and any(family.part_of(layer.name) != UNET for layer in identity.layers):
        raise ConfigError(
            f"the identity acts in the noise bands {said(identity.bands)} and changes the text encoder too, which here "
            "runs once for all noise levels; take an identity of the 'attention' layers, or draw with `hyperdream draw`"
        )


class LiveAdapter:
    """A wrapper around every call of the UNet that adds the identity's change for the noise of the call.

    Args:
        changes: band of the noise -> name of the layer within the UNet -> its factors.
        strength: factor on the change.
        sigmas: highest and lowest noise level, as the host counts, at which it acts.
        level: from the host's noise level to the bands' t in 0..1.
    """

    def __init__(
        self,
        changes: Mapping[Band, Mapping[str, LoraPair]],
        strength: float,
        sigmas: tuple[float, float],
        level: Callable[[float], float],
    ) -> None:
        self._changes, self._strength, self._sigmas, self._level = dict(changes), strength, sigmas, level
        self._placed: tuple[torch.device, dict[Band, dict[str, LoraPair]]] = torch.device("meta"), {}

    def __call__(self, executor: Any, x: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        """The UNet's answer, with the identity if it is time for it.

        Args:
            executor: ComfyUI's way on to the UNet, which it has as `class_obj`; the rest are the UNet's arguments.
        """
        band = self._band(patches.options_of_call(arguments, named, "sigmas").get("sigmas"))
        if band is None:
            return executor(x, *arguments, **named)
        # The executor knows which UNet really runs: ComfyUI may have put another copy in place.
        with live(executor.class_obj, self._on(x.device, band), self._strength):
            return executor(x, *arguments, **named)

    def _band(self, levels: torch.Tensor | None) -> Band | None:
        """The band that acts in this call, if one does."""
        bands = list(self._changes)
        if levels is None:
            if bands == [WHOLE]:
                return WHOLE
            raise ConfigError(
                "this sampler does not say how noisy its pictures are, and the identity acts in noise bands; use "
                "KSampler or SamplerCustom"
            )
        highest, lowest = self._sigmas
        sigma = float(levels.max())
        if not lowest <= sigma <= highest:
            return None
        if bands == [WHOLE]:
            return WHOLE
        index = find_owner(bands, self._level(sigma))
        return None if index is None else bands[index]

    def _on(self, device: torch.device, band: Band) -> dict[str, LoraPair]:
        # Each band is placed when it is first needed; another device starts anew.
        if self._placed[0] != device:
            self._placed = device, {}
        placed = self._placed[1]
        if band not in placed:
            placed[band] = {name: pair.to(device) for name, pair in self._changes[band].items()}
        return placed[band]
