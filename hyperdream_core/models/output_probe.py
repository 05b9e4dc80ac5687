"""Probes: changes that change nothing, and note how large a layer's output is and what a low-rank change would add."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..ops.lowrank import LoraPair
from .adapted_linear import KINDS
from .low_rank_change import Forward, LowRank


@dataclass(frozen=True, eq=False)
class OutputProbe(LoraPair):
    """A probe of one layer: it looks through `down` (r, i), and adds nothing, whatever `up` (o, r) holds."""

    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Of each call: the squared norms (b,) of the b samples' outputs, and of their inputs in down's r directions."""


class _Probes(LowRank):
    """The kind of `OutputProbe`; sizes are checked as those of a pair."""

    def forward(self, name: str, layer: nn.Module, change: Any, strength: float | Tensor, samples_each: int) -> Forward:
        """The layer's forward as it is, watched."""
        base_forward: Forward = layer.forward

        def forward(x: Tensor) -> Tensor:
            output = base_forward(x)
            hidden = torch.matmul(x.detach(), change.down.to(x).mT)
            change.seen.append((_squared_norms(output), _squared_norms(hidden)))
            return output

        return forward

    def merged(self, weight: Tensor, change: Any, strength: float) -> Tensor:
        """Refused: there is nothing to merge."""
        raise ConfigError("a probe watches a layer while it runs and has no weight to merge; run it live")


def _squared_norms(values: Tensor) -> Tensor:
    """(b,) of values (b, ...), summed in float32."""
    norms: Tensor = torch.linalg.vector_norm(values.detach().flatten(1), dim=1, dtype=torch.float32)
    return norms.square()


KINDS[OutputProbe] = _Probes()
