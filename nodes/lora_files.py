"""A LoRA file of any program as factors of a loaded MODEL's and CLIP's layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..hyperdream_core.bases import UNET, BaseFamily
from ..hyperdream_core.bases.keys import from_peft, to_ldm
from ..hyperdream_core.errors import BaseMismatchError, FileFormatError
from ..hyperdream_core.formats.container import read_tensors
from ..hyperdream_core.ops.lowrank import LoraPair
from .host import models, patches

_ENDINGS = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".alpha": "alpha",
}
_UNET_PATH = "diffusion_model."


@dataclass(frozen=True, eq=False)
class LoraFile:
    """What a LoRA changes, alpha folded in."""

    unet: dict[str, LoraPair]
    """layer of the UNet -> down (r, i), up (o, r); i of a convolution is channels times its kernel"""
    text: dict[str, LoraPair]
    """weight of the CLIP's own module -> the same"""
    trigger: str
    """the word that calls the subject, empty if the file does not say"""


def read_lora_file(path: Path, model: Any, clip: Any) -> LoraFile:
    """The LoRA in a file, for these MODEL and CLIP.

    Raises:
        FileFormatError: not a whole LoRA file, or one of another kind, such as LoHa or DoRA.
        BaseMismatchError: it changes layers that MODEL and CLIP do not have.
    """
    metadata, tensors = read_tensors(path)
    places, family = patches.lora_places(model, clip), models.family_of(model)
    unet: dict[str, LoraPair] = {}
    text: dict[str, LoraPair] = {}
    strange = []
    for layer, factors in _factors(path, tensors).items():
        place = places.get(layer) or _diffusers_place(layer, family)
        if place is None:
            strange.append(layer)
        elif place.startswith(_UNET_PATH):
            unet[place[len(_UNET_PATH) :].removesuffix(".weight")] = _pair(path, layer, factors)
        else:
            text[place] = _pair(path, layer, factors)
    if strange:
        raise BaseMismatchError(
            f"{path.name}: changes {len(strange)} layers that this MODEL and CLIP do not have, such as {strange[0]!r}; "
            f"choose a LoRA that was made for {family.title}, or load a checkpoint of the LoRA's family"
        )
    return LoraFile(unet, text, metadata.get("modelspec.trigger_phrase", "").partition(" ")[0])


def _factors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        ending = next((ending for ending in _ENDINGS if key.endswith(ending)), None)
        if ending is None:
            raise FileFormatError(
                path, f"holds {key!r}, but live guidance takes plain LoRA factors only. Choose a plain LoRA."
            )
        found.setdefault(key[: -len(ending)], {})[_ENDINGS[ending]] = tensor.float()
    if not found:
        raise FileFormatError(path, "holds no tensors, but the factors of a LoRA are expected. Get the file again.")
    return found


def _pair(path: Path, layer: str, factors: Mapping[str, Tensor]) -> LoraPair:
    if "down" not in factors or "up" not in factors:
        raise FileFormatError(path, f"lacks a factor of {layer!r}. Get the file again.")
    down, up = factors["down"].flatten(1), factors["up"].flatten(1)
    if down.shape[0] != up.shape[1]:
        raise FileFormatError(
            path, f"{layer!r} has down {tuple(down.shape)} and up {tuple(up.shape)}, which do not fit. Get it again."
        )
    scale = float(factors["alpha"]) / down.shape[0] if "alpha" in factors else 1.0
    return LoraPair(down, up * scale)


def _diffusers_place(layer: str, family: BaseFamily) -> str | None:
    """Where diffusers' own names of today lead, which not every ComfyUI knows."""
    try:
        name = from_peft(layer, family)
    except BaseMismatchError:
        return None
    if family.part_of(name) != UNET:
        return patches.text_weight(name, family)
    return f"{_UNET_PATH}{to_ldm(name, family)}.weight"
