"""A network's layers exchanged for quantised ones, one by one, and the digest of their integers.

What stays as it is:

- Normalisations and embeddings, because a number of theirs is used once for each output, so that they hold next to
  nothing, and errors in them meet all that follows.
- The first and the last convolution and the layers that read the noise level (and SDXL's sizes and pooled text). They
  hold 0.2 percent of SD 1.5's UNet, and every output goes through them: in 8 bits, with all else in 8 bits, they treble
  the error of the miniature's output, from 0.011 of its size to 0.034. They allow 8 bits, not fewer.
- Layers of a host's own classes, or with a forward of their own: what these do besides the product would be lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import BaseMismatchError, ConfigError
from ..ops.quantize.kinds import get_kind
from .one_thread import alone_with
from .quantized_linear import QuantizedLayer, quantized_layer

ENDS = (
    "conv_in",
    "conv_out",
    "time_embedding",
    "add_embedding",
    "input_blocks.0.0",
    "out.2",
    "time_embed",
    "label_emb",
)
"""The first and last layers of a UNet and those that read the noise level, in diffusers' names and in ldm's."""
LEAST_BITS_OF_ENDS = 8


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What was done to a network."""

    layers: tuple[str, ...]
    """that are quantised now"""
    kept: tuple[str, ...]
    """linear layers and convolutions that were left as they are"""
    bytes_before: int
    """of the weights of `layers`"""
    bytes_now: int
    bits_per_weight: float
    """of `layers`, scales and zero points included"""


def quantize_network_(
    network: nn.Module,
    kind: str,
    group: int | None = None,
    fit: str = "best",
    ends: str | None = None,
    progress: Callable[[int, int], None] = lambda step, total: None,
) -> Quantized:
    """Exchange the layers of a network for quantised ones, in place; no more than one is there in both forms.

    Args:
        network: such as a UNet; what else refers to its layers keeps them.
        kind: `int8`, `int4` or `nf4`.
        group: inputs that share a scale; None takes the kind's own, 0 all of an output's.
        fit: `best` or `min-max`.
        ends: kind of the first and last layers and those that read the noise level; None leaves them as they are.
        progress: called with (layers done, layers) before each layer; raising there leaves the rest as it was.

    Raises:
        ConfigError: an unknown kind or fit, an odd group, fewer bits than the ends allow, no layer to quantise, or
            numbers that are not finite; the layers before that one are quantised already.
    """
    _check_ends(kind, ends)
    # Tensors made in a host's inference mode could not be kept for a gradient.
    with alone_with([network]), torch.inference_mode(False), torch.no_grad():
        kinds, kept = _kinds(network, kind, ends)
        before = now = numbers = 0
        for done, (name, its_kind) in enumerate(kinds.items()):
            progress(done, len(kinds))
            layer = network.get_submodule(name)
            try:
                quantized = quantized_layer(layer, its_kind, group, fit)  # type: ignore[arg-type]
            except ConfigError as error:
                raise ConfigError(f"layer {name!r}: {error}") from error
            weight: torch.Tensor = layer.weight  # type: ignore[assignment]
            before += weight.numel() * weight.element_size()
            numbers += weight.numel()
            now += quantized.quantized.size_in_bytes()
            parent, _, last = name.rpartition(".")
            setattr(network.get_submodule(parent), last, quantized.train(layer.training))
            del layer, weight, quantized
        progress(len(kinds), len(kinds))
    return Quantized(
        layers=tuple(kinds), kept=kept, bytes_before=before, bytes_now=now, bits_per_weight=8 * now / numbers
    )


def integers_digest(layers: Mapping[str, nn.Module]) -> str:
    """SHA-256 (hex) of the codes and zero points of quantised layers: what scales that were trained on them go with.

    Args:
        layers: by the names that are digested with them, whichever network they are in.

    Raises:
        BaseMismatchError: a layer that is not quantised.
    """
    digest = hashlib.sha256()
    for name, layer in sorted(layers.items()):
        if not isinstance(layer, QuantizedLayer):
            raise BaseMismatchError(
                f"layer {name!r} is a {type(layer).__name__} and not quantised, so that it has no integers to compare. "
                "Load the base with the quantisation that the scales were trained on."
            )
        weight = layer.quantized
        digest.update(f"{name} {weight.kind} {weight.shape} {weight.group}\n".encode())
        for tensor in (weight.codes, weight.zero_point):
            if tensor is not None:
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def is_end(name: str) -> bool:
    """Whether a layer is one of the first or last ones, or reads the noise level."""
    return any(name == end or name.startswith(f"{end}.") for end in ENDS)


def _check_ends(kind: str, ends: str | None) -> None:
    get_kind(kind)
    if ends is not None and get_kind(ends).bits < LEAST_BITS_OF_ENDS:
        raise ConfigError(
            f"{ends} has {get_kind(ends).bits} bits, but the first and last layers and those that read the noise level "
            f"allow {LEAST_BITS_OF_ENDS} or more; use 'int8' for them, or None, which leaves them as they are"
        )


def _kinds(network: nn.Module, kind: str, ends: str | None) -> tuple[dict[str, str], tuple[str, ...]]:
    """Layer -> the kind it gets, and the layers that stay."""
    kinds, kept = dict[str, str](), []
    for name, layer in network.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            wanted = ends if is_end(name) else kind
            if wanted is None or not _is_plain(layer):
                kept.append(name)
            else:
                kinds[name] = wanted
    if not kinds:
        quantized = sum(isinstance(layer, QuantizedLayer) for layer in network.modules())
        raise ConfigError(
            f"the {type(network).__name__} has no layer to quantise, and {quantized} that are quantised already; load "
            "the base in full precision"
        )
    return kinds, tuple(kept)


def _is_plain(layer: nn.Linear | nn.Conv2d) -> bool:
    plain = nn.Linear.forward if isinstance(layer, nn.Linear) else nn.Conv2d.forward
    return type(layer).forward is plain and "forward" not in layer.__dict__ and layer.weight.is_floating_point()
