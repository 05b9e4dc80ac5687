"""Load Miniature: the embedded Stable Diffusion in small, as MODEL, CLIP and VAE; read without diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from comfy_api.latest import io
from torch import Tensor

from ...hyperdream_core.bases import BaseFamily, get_base
from ...hyperdream_core.bundled import SHIPPED, bundled_weights
from ...hyperdream_core.errors import FileFormatError
from ...hyperdream_core.formats.container import read_tensors
from ...hyperdream_core.json_text import read_json
from ...hyperdream_core.models.small_autoencoder import SmallAutoencoder
from ...hyperdream_core.pipelines.diffusers.single_file_export import unet_to_ldm
from ..host import miniature, run

_TEXT_SETTINGS = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "hidden_act")


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
        with run.ordinary_tensors():
            return io.NodeOutput(*load_miniature())


def load_miniature() -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of the miniature.

    Raises:
        FileFormatError: a file of it is missing, damaged or of another size.
    """
    folder, family = bundled_weights() / SHIPPED / "base", get_base(SHIPPED)
    schedule = _settings(folder / "scheduler" / "scheduler_config.json")
    unet, unet_tensors = _part(folder / "unet")
    text, text_tensors = _part(folder / "text_encoder")
    vae, vae_tensors = _part(folder / "vae")
    autoencoder = _filled(SmallAutoencoder.from_settings(vae), vae_tensors, folder / "vae")
    scale = float(vae["scaling_factor"])
    model = miniature.small_model(
        family,
        {unet_to_ldm(name, family.unet): tensor for name, tensor in unet_tensors.items()},
        heads=int(unet["attention_head_dim"]),
        prediction_type=str(schedule["prediction_type"]),
        scale=scale,
        rgb=_channel_colours(autoencoder, family, scale),
    )
    clip = miniature.small_clip(
        # transformers 5.6 dropped the first level of these names, which ComfyUI has.
        {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in text_tensors.items()},
        {key: text[key] for key in _TEXT_SETTINGS},
    )
    return model, clip, miniature.small_vae(autoencoder, family)


def _part(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A part's settings, and its weights as float32."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileFormatError(folder, "has no weights, but the miniature needs them; install HyperDream again")
    tensors = read_tensors(files[0])[1]
    return _settings(folder / "config.json"), {name: tensor.float() for name, tensor in tensors.items()}


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = read_json(path)
    except FileFormatError as error:
        raise FileFormatError(path, f"is missing or damaged ({error}); install HyperDream again") from error
    return settings


def _filled(autoencoder: SmallAutoencoder, tensors: Mapping[str, Tensor], folder: Path) -> SmallAutoencoder:
    try:
        autoencoder.load_state_dict(dict(tensors), strict=True)
    except RuntimeError as error:
        raise FileFormatError(
            folder, f"is not the VAE that its settings describe ({error}); install HyperDream again"
        ) from error
    return autoencoder.requires_grad_(False).train(False)


def _channel_colours(autoencoder: SmallAutoencoder, family: BaseFamily, scale: float) -> Tensor:
    """(c, 3): what each latent channel adds to red, green and blue in -1..1, fitted on clouds of colour."""
    generator = torch.Generator().manual_seed(0)
    clouds = torch.rand(16, 3, 8, 8, generator=generator)
    pictures = F.interpolate(clouds, size=(64, 64), mode="bicubic").clamp(0, 1) * 2 - 1
    latents = scale * autoencoder.encode(pictures).movedim(1, -1).flatten(0, 2)
    colours = F.avg_pool2d(pictures, family.vae_factor).movedim(1, -1).flatten(0, 2)
    # A little damping: channels that carry fine structure say nothing of colour.
    gram = latents.T @ latents + 0.01 * len(latents) * torch.eye(latents.shape[1])
    fitted: Tensor = torch.linalg.solve(gram, latents.T @ colours)
    return fitted
