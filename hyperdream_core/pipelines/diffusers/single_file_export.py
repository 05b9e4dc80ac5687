"""A base of SD 1.x's topology as a single-file checkpoint (ldm layout), the form ComfyUI and A1111 load."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...bases.keys import unet_to_ldm
from ...errors import BaseMismatchError
from ...formats.container import write_tensors
from .diffusers_base import DiffusersBase
from .ldm_tensors import UNET, VAE, vae_to_ldm


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
