"""Load Miniature: the embedded Stable Diffusion in small, as MODEL, CLIP and VAE."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from comfy_api.latest import io
from torch import Tensor, nn

from ..hyperdream_core.pipelines.diffusers_base import DiffusersBase
from ..hyperdream_core.pipelines.loading import MINIATURE, load_base
from ..hyperdream_core.pipelines.single_file import UNET
from ..hyperdream_core.pipelines.single_file_export import ldm_tensors
from . import host, host_miniature


class LoadMiniature(io.ComfyNode):
    """The miniature that comes with HyperDream."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperDreamLoadMiniature",
            display_name="Load Miniature",
            category="HyperDream",
            description="A tiny Stable Diffusion that comes with HyperDream and draws portraits of 64 px in a second, "
            "on any computer and without a download. Try every node with it, then put your own in its place.",
            inputs=[],
            outputs=[
                io.Model.Output(tooltip="The miniature's UNet; it draws 64x64 px."),
                io.Clip.Output(tooltip="Its text encoder, which reads the prompt."),
                io.Vae.Output(tooltip="Its VAE, which turns pictures into latents and back."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        with host.ordinary_tensors():
            return io.NodeOutput(*load_miniature())


def load_miniature() -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of the miniature."""
    base = load_base(MINIATURE)
    encoder = base.family.text_encoders[0]
    tensors = ldm_tensors(base)
    text = f"{encoder.ldm_prefix}."
    model = host_miniature.small_model(
        base.family,
        {name.removeprefix(UNET): tensor for name, tensor in tensors.items() if name.startswith(UNET)},
        heads=int(base.unet.config.attention_head_dim),
        prediction_type=base.prediction_type,
        scale=float(base.vae.config.scaling_factor),
        rgb=_channel_colours(base),
    )
    settings = base.text_encoders[0].config
    clip = host_miniature.small_clip(
        {name.removeprefix(text): tensor for name, tensor in tensors.items() if name.startswith(text)},
        {
            key: getattr(settings, key)
            for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "hidden_act")
        },
    )
    vae = host_miniature.small_vae(_PlainAutoencoder(base), base.family)
    return model, clip, vae


class _PlainAutoencoder(nn.Module):
    """A diffusers autoencoder, whichever it is, with plain tensors in and out, as ComfyUI calls one."""

    def __init__(self, base: DiffusersBase) -> None:
        super().__init__()
        self.autoencoder = base.vae
        self._base = base

    def encode(self, pictures: Tensor) -> Tensor:
        """Latents (b, c, h, w), not scaled, of pictures (b, 3, h, w) in -1..1."""
        return self._base.encode_image(pictures / 2 + 0.5) / float(self.autoencoder.config.scaling_factor)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (b, 3, h, w) in -1..1 of latents (b, c, h, w), not scaled."""
        return self._base.decode_latents(latents * float(self.autoencoder.config.scaling_factor)) * 2 - 1


def _channel_colours(base: DiffusersBase) -> Tensor:
    """(c, 3): what each latent channel adds to red, green and blue in -1..1, fitted on clouds of colour."""
    generator = torch.Generator().manual_seed(0)
    clouds = torch.rand(16, 3, 8, 8, generator=generator)
    pictures = F.interpolate(clouds, size=(64, 64), mode="bicubic").clamp(0, 1)
    latents = base.encode_image(pictures).movedim(1, -1).flatten(0, 2)
    factor = base.family.vae_factor
    colours = F.avg_pool2d(pictures, factor).movedim(1, -1).flatten(0, 2) * 2 - 1
    # A little damping: channels that carry fine structure say nothing of colour.
    gram = latents.T @ latents + 0.01 * len(latents) * torch.eye(latents.shape[1])
    fitted: Tensor = torch.linalg.solve(gram, latents.T @ colours)
    return fitted
