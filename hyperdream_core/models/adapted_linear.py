"""Low-rank adapters on the linear layers of a frozen module: live on the layer's output, or merged into its weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import BaseMismatchError, ConfigError
from ..ops.lowrank import LoraPair


@contextmanager
def live(
    module: nn.Module, pairs: Mapping[str, LoraPair], strength: float | Tensor = 1.0, samples_each: int = 1
) -> Iterator[None]:
    """Add strength * up(down(x)) to the output of the named linear layers while the context is open.

    Contexts may be nested on the same layers: their changes add up. Gradients flow into the pairs and the strength.
    The weights are not touched, so this also adapts quantised layers. A layer's adapter is chosen when the layer is
    called: with activation checkpointing, call backward() inside the context.

    Args:
        module: owner of the layers, e.g. a UNet.
        pairs: layer name within `module` -> down (r, i), up (o, r), or per sample down (b, r, i), up (b, o, r). The
            input of a layer with per-sample pairs has b as its leading axis. Empty: the module as it is.
        strength: one number, or one per sample (b,). The float 0.0 and a sample's 0 give the base's output bit for bit.
        samples_each: with per-sample pairs or strengths, how many consecutive samples of a call share one of them.

    Raises:
        BaseMismatchError: a layer is missing, or its sizes are not the pair's.
        ConfigError: pairs and strengths for different numbers of samples; in the call of a layer, another batch.
    """
    layers = _find_layers(module, pairs)
    for name, pair in pairs.items():
        _check_samples(name, pair, strength)
    if isinstance(strength, (int, float)) and strength == 0:
        layers = {}
    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(_install(layer, _adapted_forward(name, layer, pairs[name], strength, samples_each)))
        yield


@contextmanager
def merged(module: nn.Module, pairs: Mapping[str, LoraPair], strength: float = 1.0) -> Iterator[None]:
    """Run with weights W + strength * up @ down, summed in float32, then put the original tensors back.

    The originals are set aside whole, so they return bit for bit whatever happens inside. Costs one copy of each
    adapted weight and nothing per call. Low-precision weights round small changes away: use `live` there.

    Raises:
        BaseMismatchError: a layer is missing, not a plain linear layer, or its sizes are not the pair's.
    """
    weights = _merged_weights(module, pairs, strength)
    originals = [(parameter, parameter.data) for parameter, _ in weights]
    try:
        for parameter, value in weights:
            parameter.data = value
        yield
    finally:
        for parameter, original in originals:
            parameter.data = original


def merge_(module: nn.Module, pairs: Mapping[str, LoraPair], strength: float = 1.0) -> None:
    """Replace the weights by W + strength * up @ down for good, in place; all layers are checked before the first.

    Raises:
        BaseMismatchError: a layer is missing, not a plain linear layer, or its sizes are not the pair's.
    """
    with torch.no_grad():
        for parameter, value in _merged_weights(module, pairs, strength):
            parameter.copy_(value)


def _merged_weights(module: nn.Module, pairs: Mapping[str, LoraPair], strength: float) -> list[tuple[Tensor, Tensor]]:
    weights: list[tuple[Tensor, Tensor]] = []
    for name, layer in _find_layers(module, pairs).items():
        pair = pairs[name]
        if not isinstance(layer, nn.Linear) or not layer.weight.is_floating_point():
            raise BaseMismatchError(
                f"layer {name!r} is a {type(layer).__name__} without a floating-point weight, and merging needs one. "
                "Run the adapter live."
            )
        if pair.down.dim() != 2:
            raise ConfigError(
                f"layer {name!r} has per-sample factors, down {tuple(pair.down.shape)}, but one weight serves all "
                "samples. Merge one sample's pair, or run the adapters live."
            )
        if strength != 0:
            weights.append((layer.weight, _merged_weight(layer.weight.detach(), pair, strength)))
    return weights


def _merged_weight(weight: Tensor, pair: LoraPair, strength: float) -> Tensor:
    wide = torch.promote_types(weight.dtype, torch.float32)
    up, down = (factor.detach().to(weight.device, wide) for factor in (pair.up, pair.down))
    return torch.addmm(weight.to(wide), up, down, alpha=strength).to(weight.dtype)


def _find_layers(module: nn.Module, pairs: Mapping[str, LoraPair]) -> dict[str, nn.Module]:
    # One walk through the module: looking up 128 paths of nine names each takes four times as long.
    modules = dict(module.named_modules(remove_duplicate=False))
    for name, pair in pairs.items():
        if name not in modules:
            raise BaseMismatchError(
                f"the base has no layer {name!r} in its {type(module).__name__}. The adapter was made for another base "
                "or target set; load the one it names."
            )
        _check_layer(name, modules[name], pair)
    return {name: modules[name] for name in pairs}


def _check_layer(name: str, layer: nn.Module, pair: LoraPair) -> None:
    sizes = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
    if sizes == (None, None):
        raise BaseMismatchError(
            f"layer {name!r} of the base is a {type(layer).__name__}, not a linear layer. The adapter was made for "
            "another base; load the one it names."
        )
    rank = pair.down.shape[-2]
    if (pair.down.shape[-1], pair.up.shape[-2]) != sizes or pair.up.shape[-1] != rank:
        raise BaseMismatchError(
            f"layer {name!r} has down {tuple(pair.down.shape)} and up {tuple(pair.up.shape)}, but the base needs "
            f"(..., r, {sizes[0]}) and (..., {sizes[1]}, r). The adapter was made for another base; load the one it "
            "names."
        )


def _check_samples(name: str, pair: LoraPair, strength: float | Tensor) -> None:
    axes = [factor.shape[:-2] for factor in (pair.down, pair.up)]
    if isinstance(strength, Tensor):
        axes.append(strength.shape)
    samples = {tuple(axis) for axis in axes if axis}
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


def _adapted_forward(
    name: str, layer: nn.Module, pair: LoraPair, strength: float | Tensor, samples_each: int
) -> Callable[[Tensor], Tensor]:
    base_forward: Callable[[Tensor], Tensor] = layer.forward
    # Nested contexts have put a forward of their own into the layer; quantised layers are of other classes.
    is_plain = type(layer) is nn.Linear and "forward" not in layer.__dict__
    down, up = _folded(layer, pair, strength)
    samples = up.shape[:-2]
    add_product = torch.baddbmm if samples else torch.addmm

    def forward(x: Tensor) -> Tensor:
        if samples and (x.dim() < 2 or x.shape[0] != samples[0] * samples_each):
            raise ConfigError(
                f"layer {name!r} was called with a batch of {tuple(x.shape)}, but its adapters are for "
                f"{samples[0] * samples_each} samples. Give one adapter (or strength) for each sample of the batch."
            )
        if is_plain and not layer.weight.requires_grad:
            result: Tensor = _AdaptedLinear.apply(x, layer.weight, layer.bias, down.to(x.dtype), up.to(x.dtype))
            return result
        base = base_forward(x)
        # On the input's device: a host short of memory keeps weights elsewhere and brings them over in the call.
        hidden = torch.matmul(_tokens(x, samples), down.to(x).mT)
        return add_product(_tokens(base, samples), hidden, up.to(x).mT).reshape(base.shape)

    return forward


class _AdaptedLinear(torch.autograd.Function):
    """linear(x, weight, bias) + up(down(x)) for a frozen weight, as one node of the graph.

    Both sums, the output's and the input's gradient's, are formed in place. Measured over the miniature's 128 layers,
    forward and backward on one CPU thread: 19 to 20 ms, where the same as separate nodes takes 21 to 25.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Tensor:
        tokens = _tokens(x, up.shape[:-2])
        hidden = torch.matmul(tokens, down.mT)
        # From the unaltered x: another shape may take another kernel, and strength 0 is the base bit for bit.
        base = nn.functional.linear(x, weight, bias)
        ctx.save_for_backward(tokens, hidden, weight, down, up)
        ctx.input_shape = x.shape
        # Under autocast the products have another dtype than the factors.
        return _add_product_(_tokens(base, up.shape[:-2]), hidden, up.mT.to(base.dtype)).view(base.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        for_x, _, _, for_down, for_up = ctx.needs_input_grad
        tokens, hidden, weight, down, up = (saved.to(gradient.dtype) for saved in ctx.saved_tensors)
        gradient = _tokens(gradient, up.shape[:-2])
        at_hidden = torch.matmul(gradient, up)
        at_x = _add_product_(torch.matmul(gradient, weight), at_hidden, down) if for_x else None
        return (
            None if at_x is None else at_x.view(ctx.input_shape),
            None,
            None,
            torch.matmul(at_hidden.mT, tokens) if for_down else None,
            # In this order BLAS is faster, and the result lies as a transposed factor (r, o) does.
            torch.matmul(hidden.mT, gradient).mT if for_up else None,
        )


def _tokens(x: Tensor, samples: tuple[int, ...]) -> Tensor:
    """(..., d) as (n, d), or as (b, n, d) for b samples."""
    # A plain reshape: this runs for every layer at every step, and einops costs more than the rank-1 products.
    return x.reshape(*samples, -1, x.shape[-1])


def _add_product_(total: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """total + first @ second, in place, of matrices or of batches of them."""
    return total.addmm_(first, second) if total.dim() == 2 else total.baddbmm_(first, second)


def _folded(layer: nn.Module, pair: LoraPair, strength: float | Tensor) -> tuple[Tensor, Tensor]:
    """The factors in the layer's device and dtype, strength in `up`; both are (b, ...) if anything is per sample."""
    down, up = pair.down, pair.up
    if isinstance(strength, Tensor):
        up = up * strength.to(up)[..., None, None] if strength.dim() else up * strength.to(up)
    elif strength != 1:
        up = up * strength
    samples = max(down.shape[:-2], up.shape[:-2])
    down, up = down.expand(*samples, *down.shape[-2:]), up.expand(*samples, *up.shape[-2:])
    weight = getattr(layer, "weight", None)
    if isinstance(weight, Tensor):
        # Quantised layers hold integers (or 8-bit floats): their factors keep their own dtype, and follow the input's.
        dtype = weight.dtype if weight.is_floating_point() and weight.element_size() > 1 else down.dtype
        down, up = down.to(weight.device, dtype), up.to(weight.device, dtype)
    return down, up
