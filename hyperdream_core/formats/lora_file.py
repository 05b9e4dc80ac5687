"""Adapters as ordinary LoRA files, for every program that loads those, and back.

| dialect | keys per layer | read by |
| --- | --- | --- |
| kohya | `lora_unet_... .lora_down.weight`, `.lora_up.weight`, `.alpha` (= rank) | ComfyUI, A1111, Forge, diffusers |
| diffusers | `unet.... .lora_A.weight`, `.lora_B.weight` (alpha = rank) | diffusers and PEFT; not ComfyUI |

Alpha exists only here: it is written as the rank, and folded into `up` on reading.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..bases import BASES, BaseFamily, get_base
from ..bases.keys import from_kohya, from_peft, to_kohya, to_peft
from ..errors import BaseMismatchError, ConfigError, FileFormatError
from ..ops.lowrank import LoraPair
from .container import payload_digest, read_tensors, write_tensors

DIALECTS = ("kohya", "diffusers")

_ENDINGS = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".alpha": "alpha",
}


@dataclass(frozen=True, kw_only=True)
class LoraMetadata:
    """What a LoRA file says about itself to people and programs."""

    title: str = "HyperDream identity"
    """Name shown by LoRA browsers."""
    identifier: str = "sks"
    """Rare token that calls the subject."""
    class_noun: str = "face"
    """What the subject is."""
    thumbnail: str = ""
    """Preview as a data URI, or empty."""
    license: str = ""
    """Licence of the file as its maker states it, or empty."""
    made_by: Mapping[str, str] = field(default_factory=dict)
    """How it was made, as free facts; never a picture."""


def write_lora(
    path: Path | str,
    pairs: Mapping[str, LoraPair],
    *,
    family: str,
    dialect: str = "kohya",
    metadata: LoraMetadata | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write the adapter as a LoRA file, atomically and exactly up to the rounding of `dtype`.

    Args:
        path: of the file; its folder exists.
        pairs: canonical layer name -> down (r, i), up (o, r); ranks may differ.
        family: base family of the layers.
        dialect: `kohya` or `diffusers`.
        metadata: left out, the defaults.
        dtype: of the stored factors.

    Raises:
        BaseMismatchError: a layer that the family does not have, or of another size.
        ConfigError: an unknown dialect, no layers, or per-sample pairs.
        OutputError: the folder cannot be written, the disk is full, or a number is not finite in `dtype`.
    """
    if dialect not in DIALECTS:
        raise ConfigError(f"unknown LoRA dialect {dialect!r}; known: {', '.join(DIALECTS)}")
    base = get_base(family)
    _check_pairs(pairs, base)
    tensors: dict[str, Tensor] = {}
    for layer, pair in pairs.items():
        if dialect == "kohya":
            key = to_kohya(layer, base)
            tensors[f"{key}.lora_down.weight"] = pair.down.detach().to(dtype)
            tensors[f"{key}.lora_up.weight"] = pair.up.detach().to(dtype)
            tensors[f"{key}.alpha"] = torch.tensor(float(pair.rank), dtype=dtype)
        else:
            key = to_peft(layer, base)
            tensors[f"{key}.lora_A.weight"] = pair.down.detach().to(dtype)
            tensors[f"{key}.lora_B.weight"] = pair.up.detach().to(dtype)
    rank = max(pair.rank for pair in pairs.values())
    facts = _lora_metadata(Path(path).stem, base, rank, metadata or LoraMetadata(), payload_digest(tensors))
    write_tensors(path, facts, tensors)


def read_lora(path: Path | str, family: str | None = None) -> tuple[str, dict[str, LoraPair]]:
    """The base family and the pairs of a LoRA file in either dialect, in float32, alpha folded into `up`.

    Args:
        path: of the file.
        family: of the base it is wanted for; left out, a known family that has all its layers.

    Raises:
        FileFormatError: not a whole LoRA file, or with keys that are no LoRA factors.
        BaseMismatchError: no known family, or not the one asked for, has these layers in these sizes.
    """
    path = Path(path)
    metadata, tensors = read_tensors(path)
    factors = _factors(path, tensors)
    # The family that a file of ours names comes first: some layers are the same size in two families.
    by_claim = sorted(BASES.values(), key=lambda base: base.name != metadata.get("hyperdream.family"))
    candidates = [get_base(family)] if family is not None else by_claim
    problem: BaseMismatchError | None = None
    for base in candidates:
        try:
            return base.name, _named_pairs(path, factors, base)
        except BaseMismatchError as error:
            problem = problem or error
    if len(candidates) == 1:
        assert problem is not None
        raise problem
    raise BaseMismatchError(
        f"{path.name}: changes layers that fit none of the known base families ({', '.join(BASES)}). Use a LoRA of "
        "linear attention layers for one of them."
    ) from problem


def _check_pairs(pairs: Mapping[str, LoraPair], base: BaseFamily) -> None:
    if not pairs:
        raise ConfigError("the adapter has no layers, but a LoRA file needs at least one. Predict or polish first.")
    sizes = {layer.name: (layer.in_features, layer.out_features) for layer in base.layers("attention+geglu+text")}
    for name, pair in pairs.items():
        if pair.down.dim() != 2 or pair.up.dim() != 2:
            raise ConfigError(
                f"layer {name!r} has per-sample factors, down {tuple(pair.down.shape)}, but a LoRA file holds one "
                "adapter. Take one sample's pair."
            )
        if name not in sizes:
            raise BaseMismatchError(
                f"layer {name!r} is none of the layers of {base.title}. Name the base family that the adapter is for."
            )
        _check_sizes("the adapter", name, pair, sizes[name], base)


def _check_sizes(source: str, name: str, pair: LoraPair, sizes: tuple[int, int], base: BaseFamily) -> None:
    down, up = tuple(pair.down.shape), tuple(pair.up.shape)
    if (down[1], up[0]) != sizes or down[0] != up[1]:
        raise BaseMismatchError(
            f"{source}: layer {name!r} has down {down} and up {up}, but base {base.name!r} needs (r, {sizes[0]}) and "
            f"({sizes[1]}, r). It was made for another base; load a checkpoint of that one."
        )


def _lora_metadata(name: str, base: BaseFamily, rank: int, about: LoraMetadata, digest: str) -> dict[str, str]:
    trigger = f"{about.identifier} {about.class_noun}".strip()
    facts = {
        "format": "pt",
        "ss_base_model_version": base.ss_base_model_version,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
        "ss_output_name": name,
        "ss_tag_frequency": json.dumps({"identity": {trigger: 1}}, ensure_ascii=False),
        "sshs_model_hash": digest,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": base.modelspec_architecture,
        "modelspec.title": about.title,
        "modelspec.trigger_phrase": trigger,
        "modelspec.usage_hint": f'Write "a {trigger}" into the prompt; strength 1 is as made.',
        "modelspec.tags": f"identity, {about.class_noun}",
        "modelspec.hash_sha256": f"0x{digest}",
        "modelspec.license": about.license,
        "modelspec.thumbnail": about.thumbnail,
        "hyperdream.family": base.name,
        "hyperdream.made_by": json.dumps(dict(about.made_by), sort_keys=True, ensure_ascii=False),
    }
    return {key: value for key, value in facts.items() if value}


def _factors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Key of the layer as the file has it -> its down, up and, where there is one, alpha."""
    factors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        ending = next((ending for ending in _ENDINGS if key.endswith(ending)), None)
        if ending is None:
            raise FileFormatError(
                path, f"holds {key!r}, which is no factor of a plain LoRA of linear layers. Use a plain LoRA file."
            )
        factors.setdefault(key[: -len(ending)], {})[_ENDINGS[ending]] = tensor.float()
    for key, parts in factors.items():
        for side in ("down", "up"):
            if side not in parts:
                raise FileFormatError(path, f"lacks the {side} factor of {key!r}. Get the file again.")
            if parts[side].dim() == 4 and parts[side].shape[2:] == (1, 1):
                # Trainers write projections as 1x1 convolutions for bases that have them so.
                parts[side] = parts[side][:, :, 0, 0]
            if parts[side].dim() != 2 or 0 in parts[side].shape:
                shape = tuple(parts[side].shape)
                raise FileFormatError(
                    path, f"{key!r} has a {side} factor of shape {shape}, but a matrix is expected. Use a plain LoRA."
                )
        if "alpha" in parts and parts["alpha"].numel() != 1:
            raise FileFormatError(path, f"{key!r} has an alpha that is not one number. Get the file again.")
    if not factors:
        raise FileFormatError(path, "holds no tensors, but the factors of a LoRA are expected. Get the file again.")
    return factors


def _named_pairs(path: Path, factors: Mapping[str, dict[str, Tensor]], base: BaseFamily) -> dict[str, LoraPair]:
    sizes = {layer.name: (layer.in_features, layer.out_features) for layer in base.layers("attention+geglu+text")}
    pairs = {}
    for key, parts in factors.items():
        look_up: Callable[[str, BaseFamily], str] = from_kohya if key.startswith("lora_") else from_peft
        try:
            layer = look_up(key, base)
        except BaseMismatchError as error:
            raise BaseMismatchError(f"{path.name}: {error}") from error
        rank = parts["down"].shape[0]
        up = parts["up"] * (parts["alpha"].item() / rank) if "alpha" in parts else parts["up"]
        pair = LoraPair(down=parts["down"], up=up)
        _check_sizes(path.name, layer, pair, sizes[layer], base)
        pairs[layer] = pair
    return pairs
