"""A base model made of diffusers and transformers modules."""

from __future__ import annotations

import bisect
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...bases import UNET, BaseFamily
from ...errors import ConfigError
from ...models.adapted_linear import live
from ...models.one_thread import alone_with
from ...ops.changes import LayerChange
from ...ops.noise import NoiseProcess
from ..base import Conditioning

_TOKENS = 77
_PIXELS_AT_ONCE = 4 * 512 * 512
"""The VAE sees pictures in portions of this many px: its activations are the largest of all."""


@dataclass(frozen=True, eq=False, kw_only=True)
class DiffusersBase:
    """A base model made of diffusers and transformers modules; a `pipelines.base.Base`."""

    family: BaseFamily
    unet: Any
    vae: Any
    text_encoders: tuple[Any, ...]
    tokenizers: tuple[Any, ...]
    scheduler_config: Mapping[str, Any]
    """What any diffusers scheduler is built from."""
    noise: NoiseProcess
    assumptions: tuple[str, ...] = ()
    """What its files did not say and was taken as usual, as sentences for whoever uses it"""
    checkpoint: str = ""
    """Fingerprint of the checkpoint it was loaded from, where its weights are no longer those"""

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    def modules(self) -> tuple[nn.Module, ...]:
        return (self.unet, self.vae, *self.text_encoders)

    def cut_off(self, prompt: str) -> str:
        """The end of a prompt that is beyond CLIP's 77 tokens, which `encode_prompt` leaves out; empty if it fits."""

        def fits(length: int) -> bool:
            texts = [tokenizer(prompt[:length], truncation=False, verbose=False) for tokenizer in self.tokenizers]
            return all(len(text.input_ids) <= _TOKENS for text in texts)

        if fits(len(prompt)):
            return ""
        # Not every release of the tokenizers tells where a token's characters are.
        return prompt[bisect.bisect_left(range(len(prompt)), True, key=lambda length: not fits(length)) - 1 :]

    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts as (b, 77, d); what is beyond CLIP's 77 tokens is cut off, as everywhere."""
        # The tokenizers as well: what they are told about lengths is kept in them.
        with alone_with(self.modules()), self._here(self.text_encoders):
            return self._encoded(prompts)

    def _encoded(self, prompts: Sequence[str]) -> Conditioning:
        states, pooled = [], None
        for tokenizer, encoder in zip(self.tokenizers, self.text_encoders, strict=True):
            ids = tokenizer(
                list(prompts), padding="max_length", max_length=_TOKENS, truncation=True, return_tensors="pt"
            ).input_ids
            output = encoder(ids.to(self.device), output_hidden_states=len(self.text_encoders) > 1)
            if len(self.text_encoders) == 1:
                return Conditioning(output.last_hidden_state)
            # SDXL reads the last layer but one of both, without its final normalisation, and pools the second.
            states.append(output.hidden_states[-2])
            pooled = getattr(output, "text_embeds", None)
        return Conditioning(torch.cat(states, dim=-1), pooled)

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Scaled latents (b, c, h/8, w/8) float32 of pictures (b, 3, h, w) in 0..1: the posterior's mean."""
        factor = self.family.vae_factor
        if images.shape[-1] % factor or images.shape[-2] % factor:
            raise ConfigError(
                f"a picture of {images.shape[-1]}x{images.shape[-2]} px does not fit the VAE, whose latents cover "
                f"{factor}x{factor} px; use multiples of {factor}"
            )
        with self._here([self.vae]):
            images = (images * 2 - 1).to(self.vae.device, self.vae.dtype)
            parts = images.split(_at_once(images.shape[-1] * images.shape[-2]))
            means = [_code(self.vae.encode(part)).float() for part in parts]
        return (torch.cat(means) * self.vae.config.scaling_factor).to(self.device)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pictures (b, 3, h, w) float32 in 0..1 of scaled latents."""
        with self._here([self.vae]):
            latents = (latents.float() / self.vae.config.scaling_factor).to(self.vae.device, self.vae.dtype)
            parts = latents.split(_at_once(latents.shape[-1] * latents.shape[-2] * self.family.vae_factor**2))
            return torch.cat([(self.vae.decode(part).sample.float() / 2 + 0.5).clamp(0, 1) for part in parts])

    def predict(self, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's output (b, c, h, w) in float32 at noise levels (b,)."""
        extra = None
        if conditioning.pooled is not None:
            height, width = (side * self.family.vae_factor for side in latents.shape[-2:])
            # SDXL is told the picture's original size, crop corner and target size.
            sizes = torch.tensor([[height, width, 0, 0, height, width]], device=self.device, dtype=self.dtype)
            extra = {"text_embeds": conditioning.pooled.to(self.dtype), "time_ids": sizes.expand(len(latents), -1)}
        with alone_with(self.modules()):
            output = self.unet(
                latents.to(self.device, self.dtype),
                self.noise.model_time(t).to(self.device),
                encoder_hidden_states=conditioning.tokens.to(self.dtype),
                added_cond_kwargs=extra,
                return_dict=False,
            )
        result: Tensor = output[0]
        return result.float()

    @contextmanager
    def adapted(
        self, pairs: Mapping[str, LayerChange], strength: float | Tensor = 1.0, samples_each: int = 1
    ) -> Iterator[None]:
        """Run with live adapters by canonical layer name; those of text encoders act in `encode_prompt`.

        Other threads wait for the base meanwhile.
        """
        with ExitStack() as stack:
            stack.enter_context(alone_with(self.modules()))
            for network, part in self._split(pairs):
                stack.enter_context(live(network, part, strength, samples_each))
            yield

    @contextmanager
    def encoders_away(self, with_text: bool = True) -> Iterator[None]:
        """Keep the VAE and, if so wished, the text encoders off the UNet's device, and bring them back at the end.

        Who asks them meanwhile has them brought back for the call. On a CPU there is nowhere to go, and nothing is
        done.
        """
        parts = [self.vae, *(self.text_encoders if with_text else ())]
        if self.device.type == "cpu":
            parts = []
        try:
            with alone_with(self.modules()):
                for part in parts:
                    part.to("cpu")
            _give_back(self.device)
            yield
        finally:
            with alone_with(self.modules()):
                for part in parts:
                    part.to(self.device)

    @contextmanager
    def _here(self, parts: Sequence[nn.Module]) -> Iterator[None]:
        """Parts that are away brought to the UNet's device for the time of a call."""
        if self.device.type == "cpu":
            yield
            return
        with alone_with(self.modules()):
            away = [part for part in parts if any(weight.device != self.device for weight in part.parameters())]
            try:
                for part in away:
                    part.to(self.device)
                yield
            finally:
                for part in away:
                    part.to("cpu")

    def fingerprint(self) -> str:
        """SHA-256 (hex) that tells checkpoints of a family apart: of a sample of every UNet tensor, rounded to fp16.

        So a checkpoint saved in fp16 and its fp32 original have the same one; hashing all of it would take seconds.
        """
        if self.checkpoint:
            return self.checkpoint
        digest = hashlib.sha256(self.family.name.encode())
        for name, tensor in sorted(self.unet.state_dict().items()):
            flat = tensor.detach().reshape(-1)
            sample = flat[:: max(1, flat.numel() // 64)][:64].to("cpu", torch.float16)
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(sample.numpy().astype("<f2").tobytes())
        return digest.hexdigest()

    def _split(self, pairs: Mapping[str, LayerChange]) -> list[tuple[nn.Module, dict[str, LayerChange]]]:
        """The pairs of each network, under the layers' names within it."""
        networks: dict[str, nn.Module] = {UNET: self.unet}
        # A base may come without text encoders, where prompts are encoded already: its UNet alone is adapted then.
        networks |= zip((one.name for one in self.family.text_encoders), self.text_encoders, strict=False)
        parts: dict[str, dict[str, LayerChange]] = {part: {} for part in networks}
        for layer, pair in pairs.items():
            part = self.family.part_of(layer)
            name = layer.removeprefix(f"{part}.")
            # transformers 5.6 dropped the `text_model` level of CLIPTextModel, which files and kohya keys still have.
            if part != UNET and not hasattr(networks[part], "text_model"):
                name = name.removeprefix("text_model.")
            parts[part][name] = pair
        return [(networks[part], named) for part, named in parts.items() if named]


def _give_back(device: torch.device) -> None:
    """What torch keeps for itself of memory that is no longer used."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _at_once(pixels: int) -> int:
    return max(1, math.floor(_PIXELS_AT_ONCE / pixels))


def _code(encoded: Any) -> Tensor:
    """The latents of a KL autoencoder, the posterior's mean, or of one without a posterior (DC, tiny)."""
    posterior = getattr(encoded, "latent_dist", None)
    code: Tensor = posterior.mean if posterior is not None else next(iter(encoded.values()))
    return code
