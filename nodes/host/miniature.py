"""The miniature built by ComfyUI's own classes: a Stable Diffusion 1.x in small, treated as one by every node."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management as memory
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.taesd.taesd
import torch
from comfy.supported_models_base import ClipTarget
from torch import Tensor, nn

from ...hyperdream_core.bases import BaseFamily
from ...hyperdream_core.errors import FileFormatError


class _Multiple(Fraction):
    """How many times as wide as the first block another one is, where that is no whole number."""

    def __mul__(self, width: Any) -> Any:
        return int(Fraction.__mul__(self, width))

    __rmul__ = __mul__


def small_model(
    family: BaseFamily, weights: Mapping[str, Tensor], heads: int, prediction_type: str, scale: float, rgb: Tensor
) -> Any:
    """A MODEL of Stable Diffusion 1.x's topology in the family's sizes, built by ComfyUI's own classes.

    Args:
        family: gives blocks, widths and latent channels.
        weights: the UNet's, under ldm's names.
        heads: of every attention.
        prediction_type: `epsilon` or `v_prediction`.
        scale: latents are multiplied by this.
        rgb: (c, 3), what a latent's channels add to red, green and blue in quick previews, in -1..1.
    """

    class SmallLatents(comfy.latent_formats.LatentFormat):
        latent_channels = family.latent_channels
        scale_factor = scale
        latent_rgb_factors = rgb.tolist()
        latent_rgb_factors_bias = (0.0, 0.0, 0.0)

    class Small(comfy.supported_models.SD15):
        latent_format = SmallLatents
        unet_extra_config = {"num_heads": heads, "num_head_channels": -1}  # noqa: RUF012

        def model_type(self, state_dict: Any, prefix: str = "") -> Any:
            kinds = comfy.model_base.ModelType
            return kinds.V_PREDICTION if prediction_type == "v_prediction" else kinds.EPS

        def inpaint_model(self) -> bool:
            # ComfyUI takes more than four latent channels for an inpainting model.
            return False

    config = Small(_layout(family))
    device = memory.get_torch_device()
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device=memory.unet_offload_device())
    # ComfyUI's layers hold whatever memory held, so every one of them must be filled.
    model.diffusion_model.load_state_dict({name: weight.float() for name, weight in weights.items()}, strict=True)
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=memory.unet_offload_device())


def _layout(family: BaseFamily) -> dict[str, Any]:
    """The UNet's blocks and widths as ComfyUI writes them."""
    shape, first = family.unet, family.unet.channels[0]
    depths, layers = shape.transformer_depth, shape.layers_per_block
    return {
        "image_size": 32,
        "in_channels": family.latent_channels,
        "out_channels": family.latent_channels,
        "model_channels": first,
        "num_res_blocks": [layers] * len(depths),
        "channel_mult": [_Multiple(width, first) for width in shape.channels],
        "transformer_depth": [depth for depth in depths for _ in range(layers)],
        "transformer_depth_output": [depth for depth in depths for _ in range(layers + 1)],
        "transformer_depth_middle": shape.middle_depth,
        "context_dim": shape.context_dim,
        "use_linear_in_transformer": False,
        "use_spatial_transformer": True,
        "adm_in_channels": None,
        "legacy": False,
        "use_temporal_resblock": False,
        "use_temporal_attention": False,
    }


def small_clip(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> Any:
    """A CLIP of CLIP-L's kind in another size, with ComfyUI's own tokenizer.

    Args:
        weights: the text encoder's, named from `text_model` on.
        config: the entries of transformers' configuration that differ from CLIP-L's.
    """
    options = {"clip_l_model_config": dict(config)}

    class SmallClip(comfy.sd1_clip.SD1ClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
            super().__init__(device=device, dtype=dtype, model_options={**(model_options or {}), **options})

    clip = comfy.sd.CLIP(ClipTarget(comfy.sd1_clip.SD1Tokenizer, SmallClip))
    encoder = clip.cond_stage_model.clip_l.transformer
    with torch.no_grad():
        nn.init.eye_(encoder.text_projection.weight)
    missing, foreign = encoder.load_state_dict(dict(weights), strict=False)
    if foreign or [name for name in missing if name != "text_projection.weight"]:
        raise FileFormatError("text_encoder", f"lacks {missing} and has {foreign} besides; install HyperDream again")
    return clip


def small_vae(autoencoder: nn.Module, family: BaseFamily) -> Any:
    """A VAE whose network is `autoencoder`: encode(pictures in -1..1) and decode(latents), both plain tensors."""
    # Built as the smallest tiny autoencoder first, so that it has every field of this ComfyUI's VAE, whatever version.
    tiny = comfy.taesd.taesd.TAESD(latent_channels=family.latent_channels)
    vae = comfy.sd.VAE(sd=tiny.state_dict(), dtype=torch.float32)
    vae.first_stage_model = autoencoder.train(False).requires_grad_(False)
    vae.latent_channels, vae.size, vae.vae_dtype = family.latent_channels, None, torch.float32
    vae.downscale_ratio = vae.upscale_ratio = family.vae_factor
    vae.process_input = lambda pictures: pictures * 2.0 - 1.0
    vae.process_output = lambda pictures: pictures.add_(1.0).div_(2.0).clamp_(0.0, 1.0)
    vae.patcher = comfy.model_patcher.ModelPatcher(
        autoencoder, load_device=vae.device, offload_device=memory.vae_offload_device()
    )
    return vae
