"""A base that is polished in less memory: insides of blocks computed twice, and encoders away while they are idle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor

from ...models.one_thread import alone_with
from ...models.recomputed import recomputed
from ...ops.changes import LayerChange
from ..base import Base


class _Lean:
    """Like the base in everything, but that gradients find the UNet's blocks computed twice."""

    def __init__(self, base: Base) -> None:
        self._base = base

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)

    @contextmanager
    def adapted(
        self, pairs: Mapping[str, LayerChange], strength: float | Tensor = 1.0, samples_each: int = 1
    ) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(alone_with(self._base.modules()))
            stack.enter_context(self._base.adapted(pairs, strength, samples_each))
            if torch.is_grad_enabled():
                for network in self._base.modules():
                    stack.enter_context(recomputed(network))
            yield


def lean(base: Base) -> Base:
    """The base with the UNet's blocks computed twice, while adapters are on it and gradients are wanted."""
    return cast("Base", _Lean(base))


def encoders_away(base: Base, with_text: bool) -> AbstractContextManager[None]:
    """Have what is idle during the training leave the device, where the base is our own; hosts see to theirs.

    Args:
        with_text: text encoders as well, which is right unless adapters act in them.
    """
    leave: Any = getattr(base, "encoders_away", None)
    gone: AbstractContextManager[None] = nullcontext() if leave is None else leave(with_text)
    return gone
