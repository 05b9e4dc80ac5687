"""Low-rank changes put into a MODEL and a CLIP by ComfyUI's own patches and wrappers, and the names of their layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import comfy.patcher_extension
from comfy.weight_adapter import LoRAAdapter

from ...hyperdream_core.bases import BaseFamily
from ...hyperdream_core.bases.keys import to_ldm
from ...hyperdream_core.errors import BaseMismatchError
from ...hyperdream_core.ops.changes import LayerChange
from ...hyperdream_core.ops.lowrank import LoraPair

_LIVE_KEY = "hyperdream"


def with_patches(model: Any, pairs: Mapping[str, LoraPair], family: BaseFamily, strength: float) -> Any:
    """A clone of the MODEL whose weights will be W + strength * up @ down, by the stock LoRA adapter."""
    clone = model.clone()
    _add(clone, {f"diffusion_model.{to_ldm(name, family)}.weight": pair for name, pair in pairs.items()}, strength)
    return clone


def clip_with_patches(clip: Any, pairs: Mapping[str, LoraPair], family: BaseFamily, strength: float) -> Any:
    """A clone of the CLIP likewise; pairs under the core's names of text encoder layers."""
    return clip_with_weights(clip, {text_weight(name, family): pair for name, pair in pairs.items()}, strength)


def clip_with_weights(clip: Any, pairs: Mapping[str, LoraPair], strength: float) -> Any:
    """The same with the names that weights have within a CLIP's own module."""
    clone = clip.clone()
    _add(clone, pairs, strength)
    return clone


def _add(clone: Any, pairs: Mapping[str, LoraPair], strength: float) -> None:
    # Without alpha the adapter's own scale is 1.
    patches = {key: LoRAAdapter(set(), (p.up, p.down, None, None, None, None)) for key, p in pairs.items()}
    taken = clone.add_patches(patches, strength)
    missing = sorted(set(patches) - set(taken))
    if missing:
        raise BaseMismatchError(
            f"{len(missing)} of {len(patches)} layers of the identity are not in this model, such as {missing[0]!r}; "
            "connect MODEL and CLIP of a checkpoint of the identity's family"
        )


def options_of_call(arguments: Sequence[Any], named: Mapping[str, Any], entry: str) -> Mapping[str, Any]:
    """The transformer options among a UNet call's arguments, which come by name or by place; empty without `entry`."""
    options = named.get("transformer_options") or next(
        (one for one in arguments if isinstance(one, dict) and entry in one), {}
    )
    return options if entry in options else {}


def with_wrapper(model: Any, wrapper: Callable[..., Any]) -> Any:
    """A clone of the MODEL that calls `wrapper(executor, *arguments)` around every call of its UNet."""
    clone = model.clone()
    clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, _LIVE_KEY, wrapper)
    return clone


def _text_layer(name: str, family: BaseFamily) -> str:
    """Where a CLIP keeps a text encoder's layer."""
    encoder = next(one for one in family.text_encoders if name.startswith(f"{one.name}."))
    only = len(family.text_encoders) == 1
    part = ("clip_h" if only else "clip_g") if encoder.is_open_clip else "clip_l"
    return f"{part}.transformer.{name[len(encoder.name) + 1 :]}"


def text_weight(name: str, family: BaseFamily) -> str:
    """The name of a text encoder layer's weight within a CLIP's own module."""
    return f"{_text_layer(name, family)}.weight"


def text_layers(pairs: Mapping[str, LayerChange], family: BaseFamily) -> dict[str, LayerChange]:
    """The pairs under the names that layers have within a CLIP's own module."""
    return {_text_layer(name, family): pair for name, pair in pairs.items()}
