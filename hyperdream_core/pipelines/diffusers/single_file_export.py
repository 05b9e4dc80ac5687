"""A base of SD 1.x's topology as a single-file checkpoint (ldm layout), the form ComfyUI and A1111 load."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from ...bases.keys import unet_to_ldm
from ...errors import BaseMismatchError
from ...formats.container import write_tensors
from .diffusers_base import DiffusersBase
from .single_file import UNET, VAE

_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def write_single_file(path: Path, base: DiffusersBase, dtype: torch.dtype = torch.float16) -> None:
    """Write UNet, VAE and text encoder as one .safetensors checkpoint, atomically.

    Raises:
        BaseMismatchError: the base has OpenCLIP text encoders, whose fused layers are not written.
        OutputError: the folder cannot be written or the disk is full.
    """
    prediction = "v" if base.noise.name == "v_prediction" else base.noise.name
    tensors = {name: tensor.to(dtype) for name, tensor in ldm_tensors(base).items()}
    write_tensors(path, {"modelspec.prediction_type": prediction}, tensors)


def ldm_tensors(base: DiffusersBase) -> dict[str, Tensor]:
    """The base's weights under their names in an ldm checkpoint."""
    encoder = base.family.text_encoders[0]
    if len(base.family.text_encoders) > 1 or encoder.is_open_clip:
        raise BaseMismatchError(
            f"{base.family.title} has OpenCLIP text encoders, but single files are written for bases with one CLIP "
            "text encoder only; keep it as a diffusers folder"
        )
    tensors = {}
    for name, tensor in base.unet.state_dict().items():
        tensors[UNET + unet_to_ldm(name, base.family.unet)] = tensor
    levels = len(base.vae.config.get("block_out_channels", ()))
    for name, tensor in base.vae.state_dict().items():
        if type(base.vae).__name__ == "AutoencoderDC":
            tensors[VAE + name] = tensor  # ldm has no such VAE, so diffusers' names stay
            continue
        is_projection = ".attentions." in name and tensor.dim() == 2
        # ldm's attention in the VAE is made of 1x1 convolutions.
        tensors[VAE + vae_to_ldm(name, levels)] = tensor[:, :, None, None] if is_projection else tensor
    for name, tensor in base.text_encoders[0].state_dict().items():
        tensors[f"{encoder.ldm_prefix}.text_model.{name.removeprefix('text_model.')}"] = tensor
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def vae_to_ldm(name: str, levels: int) -> str:
    """A VAE tensor's diffusers name as ldm's, within the VAE of so many levels."""

    def block(match: re.Match[str]) -> str:
        level = int(match[2]) if match[1] == "down" else levels - 1 - int(match[2])
        return f".{match[1]}.{level}."

    name = re.sub(r"\.(down|up)_blocks\.(\d)\.", block, name)
    name = name.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
    name = re.sub(r"\.resnets\.(\d)", r".block.\1", name).replace("conv_shortcut", "nin_shortcut")
    name = name.replace("conv_norm_out", "norm_out")
    if "mid_block.attentions.0." in name:
        head, _, rest = name.partition("mid_block.attentions.0.")
        module, _, end = rest.rpartition(".")
        return f"{head}mid.attn_1.{_VAE_ATTENTION[module]}.{end}"
    return name
