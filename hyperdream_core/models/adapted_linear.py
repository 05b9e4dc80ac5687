"""Changed layers of a frozen module: live on the layer's output, or merged into its weight; one table of all kinds.

What differs between kinds of change is in the table `KINDS` and nowhere else: whether a change fits a layer, how it
acts while the layer runs, what weight it makes when merged, and how many bytes it takes. Whoever brings another kind
writes a class with these four functions and adds it, as low-rank pairs and changed scales are added here. It then works
live and merged, in nested contexts with other kinds, and with another strength for each sample. A kind that a quantised
layer's scales can take has a fifth, `rescaled`, and merges there too; all others act live on quantised layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..errors import BaseMismatchError, ConfigError
from ..ops.changes import LayerChange
from ..ops.lowrank import LoraPair
from ..ops.scales import ScaleChange
from .low_rank_change import Forward, LowRank
from .one_thread import alone_with
from .quantized_linear import QuantizedLayer
from .scale_change import Scales


class ChangeKind(Protocol):
    """What one kind of change does to layers."""

    def check(self, name: str, layer: nn.Module, change: Any) -> None:
        """Refuse a layer that the change does not fit, with `BaseMismatchError`."""
        ...

    def forward(self, name: str, layer: nn.Module, change: Any, strength: float | Tensor, samples_each: int) -> Forward:
        """A forward that adds the change to what `layer.forward` gives now, which may be another change's already.

        It keeps that function and calls it; `strength` and `samples_each` are those of `live`.
        """
        ...

    def merged(self, weight: Tensor, change: Any, strength: float) -> Tensor:
        """A weight like the layer's with the change added; the layer is linear (o, i) or a convolution (o, c, h, w)."""
        ...

    def size(self, change: Any) -> int:
        """Bytes that the change takes."""
        ...


@runtime_checkable
class IntoScales(Protocol):
    """What a kind has besides where a quantised layer can have its changes merged in."""

    def rescaled(self, layer: QuantizedLayer, change: Any, strength: float) -> dict[str, Tensor]:
        """The layer's buffers that hold scales, with the change in them."""
        ...


KINDS: dict[type, ChangeKind] = {LoraPair: LowRank(), ScaleChange: Scales()}
"""Type of change -> its kind."""


@contextmanager
def live(
    module: nn.Module, changes: Mapping[str, LayerChange], strength: float | Tensor = 1.0, samples_each: int = 1
) -> Iterator[None]:
    """Add changes to the outputs of the named layers while the context is open, e.g. strength * up(down(x)).

    Contexts may be nested on the same layers: their changes add up. Gradients flow into the changes and the strength.
    The weights are not touched, so this also adapts quantised layers. A layer's adapter is chosen when the layer is
    called: with activation checkpointing, call backward() inside the context. Other threads wait for the module
    meanwhile; see `one_thread`.

    Args:
        module: owner of the layers, e.g. a UNet.
        changes: layer name within `module` -> its change, of a kind in `KINDS`; of `LoraPair` down (r, i), up (o, r),
            where a convolution's i are its channels times its kernel, or per sample down (b, r, i), up (b, o, r);
            of `ScaleChange` (o,) and (i,) or (c,), or per sample (b, o) and (b, i). The input of a layer with
            per-sample changes has b as its leading axis. Empty: the module as it is.
        strength: one number, or one per sample (b,). The float 0.0 and a sample's 0 give the base's output bit for bit.
        samples_each: with per-sample changes or strengths, how many consecutive samples of a call share one of them.

    Raises:
        BaseMismatchError: a layer is missing, or its sizes are not the change's.
        ConfigError: an unknown kind of change; changes and strengths for different numbers of samples; in the call of
            a layer, another batch.
    """
    with ExitStack() as stack:
        stack.enter_context(alone_with([module]))
        layers = _find_layers(module, changes)
        for name, change in changes.items():
            _check_samples(name, change, strength)
        if isinstance(strength, (int, float)) and strength == 0:
            layers = {}
        for name, layer in layers.items():
            change = changes[name]
            forward = kind_of(name, change).forward(name, layer, change, strength, samples_each)
            stack.callback(_install(layer, forward))
        yield


@contextmanager
def merged(module: nn.Module, changes: Mapping[str, LayerChange], strength: float = 1.0) -> Iterator[None]:
    """Run with changed weights, e.g. W + strength * up @ down, summed in float32, then put the original tensors back.

    A quantised layer takes changes of its scales, and keeps its integers.

    The originals are set aside whole, so they return bit for bit whatever happens inside. Costs one copy of each
    adapted weight and nothing per call. Low-precision weights round small changes away: use `live` there. Other threads
    wait for the module meanwhile.

    Raises:
        BaseMismatchError: a layer is missing, has no plain weight, or its sizes are not the change's.
    """
    with alone_with([module]):
        weights = _merged_weights(module, changes, strength)
        originals = [(layer, name, _held(layer, name)) for layer, name, _ in weights]
        try:
            for layer, name, value in weights:
                _put(layer, name, value)
            yield
        finally:
            for layer, name, original in originals:
                _put(layer, name, original)


def merge_(module: nn.Module, changes: Mapping[str, LayerChange], strength: float = 1.0) -> None:
    """Change the weights for good, in place, as `merged`; all layers are checked before the first.

    Raises:
        BaseMismatchError: a layer is missing, has no plain weight, or its sizes are not the change's.
    """
    with torch.no_grad(), alone_with([module]):
        for layer, name, value in _merged_weights(module, changes, strength):
            held = getattr(layer, name)
            if held is None:
                _put(layer, name, value)
            else:
                held.copy_(value)


def kind_of(name: str, change: LayerChange) -> ChangeKind:
    """The kind of a layer's change.

    Raises:
        ConfigError: it is not in the table.
    """
    kind = KINDS.get(type(change))
    if kind is None:
        known = ", ".join(sorted(one.__name__ for one in KINDS))
        raise ConfigError(
            f"layer {name!r} has a change of the type {type(change).__name__}, but {known} are known here. Update "
            "HyperDream, or add its kind to the table."
        )
    return kind


def size_in_bytes(changes: Mapping[str, LayerChange]) -> int:
    """Bytes that changes take beside the module, for whoever has to find room for them."""
    return sum(kind_of(name, change).size(change) for name, change in changes.items())


def _merged_weights(
    module: nn.Module, changes: Mapping[str, LayerChange], strength: float
) -> list[tuple[nn.Module, str, Tensor]]:
    """(layer, name of its tensor, that tensor with the change in it)."""
    weights: list[tuple[nn.Module, str, Tensor]] = []
    for name, layer in _find_layers(module, changes).items():
        change = changes[name]
        kind = kind_of(name, change)
        if change.samples is not None:
            raise ConfigError(
                f"layer {name!r} has changes for {change.samples} samples, but one weight serves all samples. Merge "
                "one sample's change, or run the adapters live."
            )
        if isinstance(layer, QuantizedLayer) and isinstance(kind, IntoScales):
            values = kind.rescaled(layer, change, strength)
        elif isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.weight.is_floating_point():
            values = {"weight": kind.merged(layer.weight.detach(), change, strength)}
        else:
            raise BaseMismatchError(
                f"layer {name!r} is a {type(layer).__name__} without a floating-point weight, and merging needs one. "
                "Run the adapter live."
            )
        if strength != 0:
            weights += [(layer, tensor, value) for tensor, value in values.items()]
    return weights


def _held(layer: nn.Module, name: str) -> Tensor | None:
    tensor = getattr(layer, name)
    return tensor.data if isinstance(tensor, nn.Parameter) else tensor


def _put(layer: nn.Module, name: str, value: Tensor | None) -> None:
    """Into the same parameter, which others may hold, or as the layer's buffer."""
    tensor = getattr(layer, name)
    if isinstance(tensor, nn.Parameter):
        assert value is not None, "a parameter has a value"
        tensor.data = value
    else:
        setattr(layer, name, value)


def _find_layers(module: nn.Module, changes: Mapping[str, LayerChange]) -> dict[str, nn.Module]:
    # One walk through the module: looking up 128 paths of nine names each takes four times as long.
    modules = dict(module.named_modules(remove_duplicate=False))
    for name, change in changes.items():
        if name not in modules:
            raise BaseMismatchError(
                f"the base has no layer {name!r} in its {type(module).__name__}. The adapter was made for another base "
                "or target set; load the one it names."
            )
        kind_of(name, change).check(name, modules[name], change)
    return {name: modules[name] for name in changes}


def _check_samples(name: str, change: LayerChange, strength: float | Tensor) -> None:
    samples: set[tuple[int, ...]] = set() if change.samples is None else {(change.samples,)}
    if isinstance(strength, Tensor) and strength.dim():
        samples.add(tuple(strength.shape))
    if len(samples) > 1 or any(len(axis) > 1 for axis in samples):
        raise ConfigError(
            f"layer {name!r} has adapters and strengths for {sorted(samples)} samples; they must agree, or be shared "
            "by all samples."
        )


def _install(layer: nn.Module, forward: Callable[..., Tensor]) -> Callable[[], None]:
    """Put `forward` in front of the layer's own and return the function that takes it away again."""
    # The class's forward is not in the instance's dict: only a nested context has put one there.
    previous = layer.__dict__.get("forward")
    layer.__dict__["forward"] = forward

    def restore() -> None:
        if previous is None:
            del layer.__dict__["forward"]
        else:
            layer.__dict__["forward"] = previous

    return restore
