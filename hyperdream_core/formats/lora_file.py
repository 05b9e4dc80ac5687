"""Adapters as ordinary LoRA files, for every program that loads those, and LoRAs of any program back.

| dialect | keys per layer | read by |
| --- | --- | --- |
| kohya | `lora_unet_... .lora_down.weight`, `.lora_up.weight`, `.alpha` (= rank) | ComfyUI, A1111, Forge, diffusers |
| diffusers | `unet.... .lora_A.weight`, `.lora_B.weight` (alpha = rank) | diffusers and PEFT; not ComfyUI |

These two are written; `foreign/lora_names.py` lists what is read. Alpha exists only here: it is written as the rank,
and folded into `up` on reading. Example, a 3x3 convolution of rank 4 from 320 channels to 320, alpha 2:

    lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight   (4, 320, 3, 3)
    lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight     (320, 4, 1, 1)
    lora_unet_down_blocks_0_resnets_0_conv1.alpha              2

becomes the pair of `down_blocks.0.resnets.0.conv1` with down (4, 2880) as it is and up (320, 4) halved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..bases import BASES, BaseFamily, get_base
from ..bases.keys import to_kohya, to_peft
from ..bases.modules import modules
from ..errors import BaseMismatchError, ConfigError, FileFormatError, printable, quoted
from ..ops.lowrank import LoraPair
from .container import payload_digest, read_names, write_tensors
from .foreign.lora_factors import pairs_of_parts, parts_of_lora
from .foreign.lora_names import canonical_layer, other_kind
from .foreign.lora_scales import scales_of

DIALECTS = ("kohya", "diffusers")
_STRANGERS = 0.1
"""share of a LoRA's layers that a family may lack: trainers add layers of their own, but most must be there"""
_LONGEST_PHRASE = 300


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


@dataclass(frozen=True, kw_only=True, eq=False)
class LoraFile:
    """A LoRA as it was read, alpha folded in."""

    family: str
    pairs: Mapping[str, LoraPair]
    """canonical layer -> down (r, i), up (o, r), float32; i of a convolution is channels times its kernel"""
    identifier: str = ""
    """the word that calls the subject, of a file that we wrote; empty for any other"""
    class_noun: str = ""
    """what the subject is, likewise"""
    trigger_phrases: tuple[str, ...] = ()
    """what the file says calls its subject or style, word for word; often it says nothing"""
    left_out: tuple[str, ...] = ()
    """keys of layers and tensors that are no plain factors of layers we change, such as embeddings"""

    @property
    def note(self) -> str:
        """One sentence about what was left out; empty if nothing was."""
        if not self.left_out:
            return ""
        shown = ", ".join(printable(key, 120) for key in self.left_out[:3]) + (
            ", ..." if len(self.left_out) > 3 else ""
        )
        return f"left out of the LoRA: {len(self.left_out)} that are no plain factors of a layer we change ({shown})"


def read_lora_file(path: Path | str, family: str | None = None) -> LoraFile:
    """The LoRA in a file of any program: every plain low-rank factor of linear layers and convolutions.

    Args:
        path: of the file.
        family: of the base it is wanted for; left out, a known family that has its layers.

    Raises:
        FileFormatError: not a whole LoRA, another kind of adapter (it is named), or one that names a layer twice.
        BaseMismatchError: no known family, or not the one asked for, has these layers in these sizes.
    """
    path = Path(path)
    metadata, names = read_names(path)
    if not names:
        raise FileFormatError(path, "holds no tensors, but the factors of a LoRA are expected. Get the file again.")
    if found := other_kind(names):
        raise FileFormatError(
            path, f"is a {found[0]} (it holds {quoted(found[1], 120)}), but only plain LoRA is read. Use a plain LoRA."
        )
    parts, left_out = parts_of_lora(path, names)
    layers = pairs_of_parts(path, parts, scales_of(path, metadata))
    # The family that a file of ours names comes first: some layers are the same size in two families.
    by_claim = sorted(BASES.values(), key=lambda base: base.name != metadata.get("hyperdream.family"))
    candidates = [get_base(family)] if family is not None else by_claim
    problem: BaseMismatchError | None = None
    for base in candidates:
        try:
            pairs, strangers = _of_family(path, layers, base)
        except BaseMismatchError as error:
            problem = problem or error
            continue
        return LoraFile(
            family=base.name,
            pairs=pairs,
            **_words(metadata),
            trigger_phrases=_phrases(metadata),
            left_out=tuple(sorted((*left_out, *strangers))),
        )
    assert problem is not None
    if len(candidates) == 1:
        raise problem
    raise BaseMismatchError(
        f"{path.name}: changes layers that fit none of the known base families ({', '.join(BASES)}). Use a LoRA that "
        "was made for one of them."
    ) from problem


def read_lora(path: Path | str, family: str | None = None) -> tuple[str, dict[str, LoraPair]]:
    """The base family and the pairs alone of `read_lora_file`."""
    found = read_lora_file(path, family)
    return found.family, dict(found.pairs)


def _words(metadata: Mapping[str, str]) -> dict[str, str]:
    """Identifier and class noun, if the file is ours and nobody has written another phrase into it since."""
    phrase = metadata.get("modelspec.trigger_phrase", "")
    found = metadata.get("hyperdream.identifier", ""), metadata.get("hyperdream.class_noun", "")
    tags = metadata.get("ss_tag_frequency", "")
    if "hyperdream.family" in metadata and not found[0] and tags == _tag_frequency(phrase):
        found = phrase.partition(" ")[::2]  # As 0.1.0 wrote it, whose identifiers are one word.
    is_known = (
        bool(found[0])
        and len(phrase) <= _LONGEST_PHRASE
        and phrase.isprintable()
        and f"{found[0]} {found[1]}".strip() == phrase
    )
    return {"identifier": found[0], "class_noun": found[1]} if is_known else {}


def _tag_frequency(trigger: str) -> str:
    return json.dumps({"identity": {trigger: 1}}, ensure_ascii=False)


def _phrases(metadata: Mapping[str, str]) -> tuple[str, ...]:
    phrase = metadata.get("modelspec.trigger_phrase", "").strip()
    # Shown in terminals and tooltips: a stranger's control characters are not.
    phrase = "".join(character if character.isprintable() else " " for character in phrase[:_LONGEST_PHRASE])
    return (phrase,) if phrase.strip() else ()


def _of_family(path: Path, layers: Mapping[str, LoraPair], base: BaseFamily) -> tuple[dict[str, LoraPair], list[str]]:
    """The pairs under the family's names, and the keys of layers that it lacks.

    Raises:
        BaseMismatchError: a layer of another size, or too many that the family lacks.
        FileFormatError: a layer named twice, in two dialects.
    """
    table = modules(base)
    named: dict[str, str] = {}
    strangers = []
    for layer in layers:
        name = canonical_layer(layer, base)
        if name is None:
            strangers.append(layer)
            continue
        pair, module = layers[layer], table[name]
        _check_sizes(path.name, name, pair, (module.inputs, module.outputs), base)
        if name in named:
            raise FileFormatError(
                path,
                f"changes the layer {name!r} twice, as {quoted(named[name], 120)} and as {quoted(layer, 120)}, and "
                "only one can be meant. "
                "Use a LoRA that was saved by one program.",
            )
        named[name] = layer
    if len(strangers) > _STRANGERS * len(layers):
        raise BaseMismatchError(
            f"{path.name}: {len(strangers)} of its {len(layers)} layers, such as {quoted(strangers[0], 120)}, are "
            "none of "
            f"{base.title}. Use a LoRA that was made for it."
        )
    return {name: layers[layer] for name, layer in named.items()}, strangers


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
        "ss_tag_frequency": _tag_frequency(trigger),
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
        "hyperdream.identifier": about.identifier,
        "hyperdream.class_noun": about.class_noun,
        "hyperdream.made_by": json.dumps(dict(about.made_by), sort_keys=True, ensure_ascii=False),
    }
    return {key: value for key, value in facts.items() if value}
