"""Layer names in the dialects of other programs, each way.

| dialect | SD 1.x example | who |
| --- | --- | --- |
| canonical | down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q | diffusers; text encoders with their prefix |
| ldm | input_blocks.1.1.transformer_blocks.0.attn1.to_q | inside the UNet of ComfyUI, A1111, single-file checkpoints |
| kohya | lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q | every LoRA loader |
| peft | unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q | diffusers' `load_lora_weights` |

UNet paths in ldm are relative to `model.diffusion_model`. Text encoders are given with their full path in a
checkpoint; where OpenCLIP fuses q, k and v, the third of the rows that belongs to the layer follows in brackets:
`conditioner.embedders.1.model.transformer.resblocks.3.attn.in_proj_weight[q]`.
"""

from __future__ import annotations

from functools import lru_cache

from ..errors import BaseMismatchError
from .family import TARGET_SETS, UNET, BaseFamily, TextEncoderShape

_ALL = TARGET_SETS[-1]


def to_ldm(layer: str, family: BaseFamily) -> str:
    """The layer's path in ldm-style modules and checkpoints."""
    for encoder in family.text_encoders:
        if layer.startswith(f"{encoder.name}."):
            return _text_to_ldm(layer[len(encoder.name) + 1 :], encoder)
    block, index, *rest = layer.split(".")
    # A block of ldm is one residual layer with its attention; block 0 of input_blocks is the first convolution, and
    # each resolution but the last ends in a resampler: an input block of its own, but the tail of an output block.
    per_block = family.unet.layers_per_block + 1
    if block == "mid_block":
        return ".".join(["middle_block", "1", *rest[1:]])
    attention = int(rest[1])
    number = int(index) * per_block + attention + (1 if block == "down_blocks" else 0)
    side = "input_blocks" if block == "down_blocks" else "output_blocks"
    return ".".join([side, str(number), "1", *rest[2:]])


def from_ldm(path: str, family: BaseFamily) -> str:
    """The canonical name of an ldm path; a `model.diffusion_model.` or `diffusion_model.` in front is ignored."""
    short = path.removeprefix("model.").removeprefix("diffusion_model.")
    return _look_up(_ldm_names(family), short, path, family)


def to_kohya(layer: str, family: BaseFamily) -> str:
    """The layer's name in a LoRA file, without dots, because A1111 splits keys at the first one."""
    for index, encoder in enumerate(family.text_encoders, start=1):
        if layer.startswith(f"{encoder.name}."):
            prefix = "lora_te" if len(family.text_encoders) == 1 else f"lora_te{index}"
            return f"{prefix}_{layer[len(encoder.name) + 1 :]}".replace(".", "_")
    return f"lora_unet_{layer}".replace(".", "_")


def from_kohya(key: str, family: BaseFamily) -> str:
    """The canonical name of a kohya key, with the UNet's part in diffusers' names or, as SDXL trainers write, ldm's."""
    return _look_up(_kohya_names(family), key, key, family)


def to_peft(layer: str, family: BaseFamily) -> str:
    """The layer's name in a diffusers LoRA file."""
    return f"{UNET}.{layer}" if family.part_of(layer) == UNET else layer


def from_peft(key: str, family: BaseFamily) -> str:
    """The canonical name of a key in a diffusers LoRA file."""
    return _look_up(_peft_names(family), key, key, family)


def _text_to_ldm(path: str, encoder: TextEncoderShape) -> str:
    if not encoder.is_open_clip:
        return f"{encoder.ldm_prefix}.{path}"
    index, _, projection = path.removeprefix("text_model.encoder.layers.").split(".")
    block = f"{encoder.ldm_prefix}.transformer.resblocks.{index}.attn"
    return f"{block}.out_proj" if projection == "out_proj" else f"{block}.in_proj_weight[{projection[0]}]"


@lru_cache(maxsize=8)
def _ldm_names(family: BaseFamily) -> dict[str, str]:
    return {to_ldm(layer.name, family): layer.name for layer in family.layers(_ALL)}


@lru_cache(maxsize=8)
def _kohya_names(family: BaseFamily) -> dict[str, str]:
    names = {to_kohya(layer.name, family): layer.name for layer in family.layers(_ALL)}
    for layer in family.layers("attention+geglu"):
        names[f"lora_unet_{to_ldm(layer.name, family)}".replace(".", "_")] = layer.name
    return names


@lru_cache(maxsize=8)
def _peft_names(family: BaseFamily) -> dict[str, str]:
    return {to_peft(layer.name, family): layer.name for layer in family.layers(_ALL)}


def _look_up(names: dict[str, str], key: str, shown: str, family: BaseFamily) -> str:
    if key not in names:
        raise BaseMismatchError(
            f"{shown!r} names no attention, GEGLU or text attention layer of {family.title}. The file was made for "
            "another base or changes other layers; use one made for this base."
        )
    return names[key]
