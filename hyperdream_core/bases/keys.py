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

import re
from functools import lru_cache

from ..errors import BaseMismatchError
from .family import UNET, BaseFamily, TextEncoderShape, UNetShape
from .modules import modules

_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_TEXT_MLP = {"fc1": "c_fc", "fc2": "c_proj"}


def to_ldm(layer: str, family: BaseFamily) -> str:
    """The layer's path in ldm-style modules and checkpoints."""
    for encoder in family.text_encoders:
        if layer.startswith(f"{encoder.name}."):
            return _text_to_ldm(layer[len(encoder.name) + 1 :], encoder)
    return unet_to_ldm(f"{layer}.weight", family.unet).removesuffix(".weight")


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
    index, part, projection = path.removeprefix("text_model.encoder.layers.").split(".")
    if part == "mlp":
        return f"{encoder.ldm_prefix}.transformer.resblocks.{index}.mlp.{_TEXT_MLP[projection]}"
    block = f"{encoder.ldm_prefix}.transformer.resblocks.{index}.attn"
    return f"{block}.out_proj" if projection == "out_proj" else f"{block}.in_proj_weight[{projection[0]}]"


def unet_to_ldm(name: str, unet: UNetShape) -> str:
    """A UNet tensor's diffusers name as ldm's, within the UNet."""
    module, _, end = name.rpartition(".")
    if module in _UNET_ENDS:
        return f"{_UNET_ENDS[module]}.{end}"
    # A block of ldm is one residual layer with its attention; block 0 of input_blocks is the first convolution, and
    # each resolution but the last ends in a resampler: an input block of its own, but the tail of an output block.
    per_block = unet.layers_per_block + 1
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        kind, index, rest = match.groups()
        number = 2 * int(index) if kind == "resnets" else 1
        return f"middle_block.{number}.{_residual(rest) if kind == 'resnets' else rest}"
    if match := re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.+)", name):
        side, block, kind, index, rest = match.groups()
        number = int(block) * per_block + int(index) + (side == "down")
        place = f"{'input' if side == 'down' else 'output'}_blocks.{number}"
        return f"{place}.0.{_residual(rest)}" if kind == "resnets" else f"{place}.1.{rest}"
    if match := re.fullmatch(r"down_blocks\.(\d)\.downsamplers\.0\.conv\.(.+)", name):
        return f"input_blocks.{per_block * (int(match[1]) + 1)}.0.op.{match[2]}"
    match = re.fullmatch(r"up_blocks\.(\d)\.upsamplers\.0\.conv\.(.+)", name)
    assert match is not None, name
    # The upsampler is the last part of its block, after the attention where there is one.
    attends = tuple(reversed(unet.transformer_depth))[int(match[1])] > 0
    return f"output_blocks.{per_block * int(match[1]) + per_block - 1}.{2 if attends else 1}.conv.{match[2]}"


def _residual(rest: str) -> str:
    module, _, end = rest.rpartition(".")
    return f"{_RESIDUAL[module]}.{end}"


@lru_cache(maxsize=8)
def _ldm_names(family: BaseFamily) -> dict[str, str]:
    return {to_ldm(name, family): name for name in modules(family)}


@lru_cache(maxsize=8)
def _kohya_names(family: BaseFamily) -> dict[str, str]:
    names = {to_kohya(name, family): name for name in modules(family)}
    for name in modules(family):
        if family.part_of(name) == UNET:
            names[f"lora_unet_{to_ldm(name, family)}".replace(".", "_")] = name
    return names


@lru_cache(maxsize=8)
def _peft_names(family: BaseFamily) -> dict[str, str]:
    return {to_peft(name, family): name for name in modules(family)}


def _look_up(names: dict[str, str], key: str, shown: str, family: BaseFamily) -> str:
    if key not in names:
        raise BaseMismatchError(
            f"{shown!r} names no layer of {family.title} that an adapter may change. The file was made for another "
            "base or changes other layers; use one made for this base."
        )
    return names[key]
