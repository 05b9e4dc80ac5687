"""ComfyUI's loaded MODEL, CLIP and VAE as the core's `Base`, so that its pipelines run on them unchanged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...hyperdream_core.bases import UNET, BaseFamily
from ...hyperdream_core.bases.keys import to_ldm
from ...hyperdream_core.errors import BaseMismatchError, ConfigError
from ...hyperdream_core.models.adapted_linear import live
from ...hyperdream_core.models.one_thread import alone_with
from ...hyperdream_core.ops.changes import LayerChange
from ...hyperdream_core.pipelines.base import Conditioning
from ..host import models, patches, run, training


class ComfyBase:
    """A `pipelines.base.Base` made of what a ComfyUI graph has loaded.

    The UNet is brought to its device when it is first adapted, after pictures and prompts have been encoded: those
    need the VAE and the CLIP there, and both together may not fit.

    Args:
        model: MODEL; its weights are trained upon as they are, with the LoRAs that were merged into it.
        clip: CLIP.
        vae: VAE.
        bytes_needed: room to ask for beside the weights.
    """

    def __init__(self, model: Any, clip: Any, vae: Any, bytes_needed: float = 0.0) -> None:
        self.family: BaseFamily = models.family_of(model)
        models.refuse_more_channels(model)
        self.noise = models.noise_process_of(model)
        self.patcher = training.trainable(model)
        self._clip, self._vae = clip, vae
        self._bytes_needed, self._is_loaded = bytes_needed, False
        self._encoded: dict[str, Conditioning] = {}

    @property
    def unet(self) -> nn.Module:
        """The UNet, under ldm's names."""
        return models.unet_of(self.patcher)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.patcher.load_device
        return device

    @property
    def dtype(self) -> torch.dtype:
        return models.inference_dtype(self.patcher)

    def modules(self) -> Sequence[nn.Module]:
        return (self.unet, self._clip.cond_stage_model)

    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts as CLIP Text Encode does; known ones are not encoded again."""
        if torch.is_grad_enabled():
            return self._encode(prompts)
        for prompt in prompts:
            if prompt not in self._encoded:
                self._encoded[prompt] = self._encode([prompt])
        return _joined([self._encoded[prompt] for prompt in prompts], prompts)

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Scaled latents (b, c, h, w) float32 of pictures (b, 3, h, w) in 0..1."""
        latents = self._vae.encode(images.movedim(1, -1))
        if latents.dim() != 4 or latents.shape[1] != self.family.latent_channels:
            raise BaseMismatchError(
                f"the VAE makes latents of shape {tuple(latents.shape[1:])}, but {self.family.title} has "
                f"{self.family.latent_channels} channels; connect MODEL and VAE of the same checkpoint"
            )
        scaled: Tensor = self.patcher.model.process_latent_in(latents.float())
        return scaled.to(self.device)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pictures (b, 3, h, w) float32 in 0..1 of scaled latents."""
        pictures: Tensor = self._vae.decode(self.patcher.model.process_latent_out(latents.float()))
        return pictures.movedim(-1, 1).float()

    def predict(self, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's output (b, c, h, w) in float32 at noise levels (b,)."""
        self.load()
        extra = {}
        if conditioning.pooled is not None and len(self.family.text_encoders) > 1:
            height, width = (side * self.family.vae_factor for side in latents.shape[-2:])
            sizes = self.patcher.model.encode_adm(pooled_output=conditioning.pooled, width=width, height=height)
            extra = {"y": sizes.to(self.device, self.dtype)}
        with alone_with(self.modules()):
            output: Tensor = self.unet(
                latents.to(self.device, self.dtype),
                self.noise.model_time(t).to(self.device, torch.float32),
                context=conditioning.tokens.to(self.device, self.dtype),
                transformer_options={},
                **extra,
            )
        return output.float()

    @contextmanager
    def adapted(
        self, pairs: Mapping[str, LayerChange], strength: float | Tensor = 1.0, samples_each: int = 1
    ) -> Iterator[None]:
        """Run with live adapters by canonical layer name; those of text encoders act in `encode_prompt`.

        Raises:
            Cancelled: the user pressed Stop, which ComfyUI's layers notice in the middle of the UNet.
        """
        text = {name: pair for name, pair in pairs.items() if self.family.part_of(name) != UNET}
        unet = {to_ldm(name, self.family): pair for name, pair in pairs.items() if name not in text}
        with ExitStack() as stack:
            stack.enter_context(alone_with(self.modules()))
            stack.enter_context(run.stop_as_cancelled())
            self.load()
            if unet:
                stack.enter_context(live(self.unet, unet, strength, samples_each))
            if text:
                training.leave_inference_mode(self._clip.cond_stage_model)
                layers = patches.text_layers(text, self.family)
                stack.enter_context(live(self._clip.cond_stage_model, layers, strength, samples_each))
            yield

    def load(self) -> None:
        """Bring the UNet to its device, once, with the room that was asked for."""
        if not self._is_loaded:
            training.load_for_training(self.patcher, self._bytes_needed)
            self._is_loaded = True

    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        with alone_with(self.modules()):
            parts = [Conditioning(*models.encode_prompt(self._clip, prompt)) for prompt in prompts]
        for part in parts:
            models.check_encoding(part.tokens, self.family)
        return _joined(parts, prompts)


def _joined(parts: Sequence[Conditioning], prompts: Sequence[str]) -> Conditioning:
    lengths = {part.tokens.shape[1] for part in parts}
    if len(lengths) > 1:
        longest = max(prompts, key=len)
        raise ConfigError(
            f"the prompts take {sorted(lengths)} tokens, but all of them together need one length; shorten "
            f"{longest[:80]!r}"
        )
    pooled = [part.pooled for part in parts if part.pooled is not None]
    tokens = torch.cat([part.tokens for part in parts])
    return Conditioning(tokens, torch.cat(pooled) if len(pooled) == len(parts) else None)
