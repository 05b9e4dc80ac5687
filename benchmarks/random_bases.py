"""Bases with the true shape of a family and random weights: time and memory do not depend on what the weights say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hyperdream_core.bases import BaseFamily
from hyperdream_core.bundled import bundled_weights
from hyperdream_core.miniature.recipe.autoencoder import new_autoencoder
from hyperdream_core.miniature.recipe.base_training import SCHEDULE
from hyperdream_core.models.hypernetwork import Hypernetwork, HypernetworkConfig
from hyperdream_core.pipelines.base import Conditioning
from hyperdream_core.pipelines.diffusers.configurations import text_config, unet_config
from hyperdream_core.pipelines.diffusers.diffusers_base import DiffusersBase
from hyperdream_core.pipelines.diffusers.ldm_tensors import UNET
from hyperdream_core.pipelines.diffusers.schedule import noise_process_of

TEXT_TOKENS = 77


class EncodedBase(DiffusersBase):
    """A UNet alone; text and pictures come encoded, as random numbers. So only what runs at every step is measured."""

    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        pooled = None
        if len(self.family.text_encoders) > 1:
            pooled = self._random(len(prompts), self.family.text_encoders[-1].width)
        return Conditioning(self._random(len(prompts), TEXT_TOKENS, self.family.unet.context_dim), pooled)

    def encode_image(self, images: Tensor) -> Tensor:
        sides = (side // self.family.vae_factor for side in images.shape[-2:])
        return self._random(len(images), self.family.latent_channels, *sides)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(self.device)


def encoded_base(family: BaseFamily, device: str, dtype: torch.dtype) -> EncodedBase:
    """A base of which only the UNet is real."""
    unet = _new_unet(family, device, dtype)
    return EncodedBase(
        family=family,
        unet=unet,
        vae=nn.Identity(),
        text_encoders=(),
        tokenizers=(),
        scheduler_config=SCHEDULE,
        noise=noise_process_of(SCHEDULE),
    )


def whole_base(family: BaseFamily, device: str, dtype: torch.dtype) -> DiffusersBase:
    """A base with all of its parts, of a family with one text encoder."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer

    with torch.device(device):
        # The VAE of SD 1.x and 2.x.
        vae = new_autoencoder(torch.rand(64, 3, 64, 64)) if family.name == "miniature" else AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            scaling_factor=family.scaling_factor,
        )  # fmt: skip
        encoders = [CLIPTextModel(text_config(encoder)) for encoder in family.text_encoders]
    return DiffusersBase(
        family=family,
        unet=_new_unet(family, device, dtype),
        vae=_frozen(vae, dtype),
        text_encoders=tuple(_frozen(encoder, dtype) for encoder in encoders),
        tokenizers=(CLIPTokenizer.from_pretrained(bundled_weights() / "miniature" / "base" / "tokenizer"),),
        scheduler_config=SCHEDULE,
        noise=noise_process_of(SCHEDULE),
    )


def new_hypernetwork(family: BaseFamily, device: str, dtype: torch.dtype) -> Hypernetwork:
    """Of the usual size: the small convolutional encoder for the miniature, a ViT-L/14 for the large families."""
    config = HypernetworkConfig(family=family.name)
    if family.name != "miniature":
        sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
        vit = {"kind": "vit", "model_type": "clip_vision_model", "model": {**sizes, "patch_size": 14}}
        config = HypernetworkConfig(family=family.name, width=1024, heads=16, image_encoder=vit)
    with torch.device(device):
        network = Hypernetwork(config)
    return network.to(device, dtype).train(False)


def _new_unet(family: BaseFamily, device: str, dtype: torch.dtype) -> Any:
    from diffusers import UNet2DConditionModel

    # SD 1.x projects into its transformers with 1x1 convolutions: four axes; SDXL is told sizes.
    shapes: dict[str, tuple[int, ...]] = {f"{UNET}middle_block.1.proj_in.weight": (1, 1, 1, 1)}
    if family.name in ("sd2", "sdxl"):
        shapes = {f"{UNET}middle_block.1.proj_in.weight": (1, 1)}
    if len(family.text_encoders) > 1:
        shapes[f"{UNET}label_emb.0.0.weight"] = (1280, family.text_encoders[-1].width + 6 * 256)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_config(family, shapes))
    for parameter in unet.parameters():
        parameter.data = parameter.data.to(dtype)
    # Filled in the dtype that is asked for: a copy in float32 would be the largest memory of all.
    unet = unet.to_empty(device=device)
    if device != "meta":
        # The same million numbers again and again: to draw SDXL's 2.6 billion takes longer than to train on them.
        drawn = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).to(device)
        for name, parameter in unet.named_parameters():
            if "norm" in name or parameter.dim() < 2:
                torch.nn.init.constant_(parameter, float(name.endswith("weight")))
            else:
                values = (drawn * parameter[0].numel() ** -0.5).to(dtype)
                for part in parameter.data.view(-1).split(len(values)):
                    part.copy_(values[: len(part)])
    return _frozen(unet, dtype)


def _frozen(module: Any, dtype: torch.dtype) -> Any:
    # Tensor by tensor: diffusers' own `to` warns of layers it would keep in float32, and the pipelines keep none.
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
    return module.requires_grad_(False).train(False)
