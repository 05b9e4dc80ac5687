"""Layer changes of any kind: what they can do by themselves. What they do to a layer, `models.adapted_linear` knows."""

from __future__ import annotations

from typing import Protocol

import torch


class LayerChange(Protocol):
    """The change of one layer, such as `lowrank.LoraPair`; all kinds are in the table of `models.adapted_linear`."""

    @property
    def samples(self) -> int | None:
        """Of how many samples it holds a change each; None: one change that all samples share."""
        ...

    def to(self, device: torch.device) -> LayerChange:
        """The same change on a device."""
        ...

    def rows(self, rows: slice) -> LayerChange:
        """The changes of some of its samples; one that all share is itself."""
        ...

    def repeat_each(self, count: int) -> LayerChange:
        """Every sample's change so many times in a row; one that all share is itself."""
        ...
