"""Automatic1111's loaded checkpoint as the core's `Base`, so that its pipelines run on it unchanged.

Nothing of the checkpoint is changed: adapters are live, and `polish` freezes the parameters and gives their flags
back. Only the LoRAs that the last picture left in the weights are taken out first; the next picture puts its own in.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hyperdream_core.bases import UNET, BaseFamily, detect_family
from hyperdream_core.bases.keys import to_ldm
from hyperdream_core.errors import BaseMismatchError, ConfigError
from hyperdream_core.models.adapted_linear import live
from hyperdream_core.models.one_thread import alone_with
from hyperdream_core.ops.changes import LayerChange
from hyperdream_core.ops.noise import DiscreteDiffusion, NoiseProcess, to_t
from hyperdream_core.pipelines.base import Conditioning


class LoadedBase:
    """What the loaded checkpoints of both hosts have in common; a `pipelines.base.Base` but for the host's calls.

    Args:
        sd_model: the host's model object.
        unet: under ldm's names.
        dtype: that the UNet computes in.
        device: that it computes on.

    Raises:
        BaseMismatchError: a checkpoint of a family that nobody here can polish on.
    """

    noise: NoiseProcess

    def __init__(self, sd_model: Any, unet: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        self.family: BaseFamily = detect_family({n: tuple(p.shape) for n, p in unet.named_parameters()})
        if len(self.family.text_encoders) > 1 or self.family.text_encoders[0].is_open_clip:
            raise BaseMismatchError(
                f"the loaded checkpoint is a {self.family.title}, but polishing on a loaded checkpoint is there for "
                "Stable Diffusion 1.x; load one of those, or polish with the command line or in ComfyUI"
            )
        self.sd_model, self.unet, self.device, self.dtype = sd_model, unet, device, dtype

    def modules(self) -> Sequence[nn.Module]:
        """All networks that are frozen and claimed."""
        raise NotImplementedError

    def text_encoder(self) -> nn.Module:
        """The module that text adapters are live on, named from `text_model` on."""
        raise NotImplementedError

    @contextmanager
    def adapted(
        self, pairs: Mapping[str, LayerChange], strength: float | Tensor = 1.0, samples_each: int = 1
    ) -> Iterator[None]:
        """Run with live adapters by canonical layer name; those of the text encoder act in `encode_prompt`."""
        text = {name: pair for name, pair in pairs.items() if self.family.part_of(name) != UNET}
        unet = {to_ldm(name, self.family): pair for name, pair in pairs.items() if name not in text}
        with ExitStack() as stack:
            stack.enter_context(alone_with(self.modules()))
            stack.enter_context(live(self.unet, unet, strength, samples_each))
            if text:
                named = {name.removeprefix("text_encoder."): pair for name, pair in text.items()}
                stack.enter_context(live(self.text_encoder(), named, strength, samples_each))
            yield

    def encode_image(self, images: Tensor) -> Tensor:
        """Scaled latents (b, c, h, w) float32 of pictures (b, 3, h, w) in 0..1."""
        # One by one: the VAE's activations are the largest of all.
        return torch.cat([self._encoded(picture * 2.0 - 1.0) for picture in images.split(1)])

    def _encoded(self, picture: Tensor) -> Tensor:
        raise NotImplementedError


class A1111Base(LoadedBase):
    """The checkpoint in `shared.sd_model`."""

    def __init__(self, sd_model: Any) -> None:
        from modules import devices

        super().__init__(sd_model, sd_model.model.diffusion_model, devices.device, devices.dtype_unet)
        prediction = "v_prediction" if sd_model.parameterization == "v" else "epsilon"
        self.noise = DiscreteDiffusion(sd_model.alphas_cumprod.detach().float().cpu(), prediction)

    def modules(self) -> Sequence[nn.Module]:
        return (self.unet, self.sd_model.cond_stage_model, self.sd_model.first_stage_model)

    def text_encoder(self) -> nn.Module:
        encoder: nn.Module = self.sd_model.cond_stage_model.wrapped.transformer
        return encoder

    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts as txt2img does."""
        from modules import devices

        with alone_with(self.modules()), devices.autocast():
            return Conditioning(self.sd_model.get_learned_conditioning(list(prompts)).float())

    @torch.no_grad()
    def _encoded(self, picture: Tensor) -> Tensor:
        from modules import devices

        posterior = self.sd_model.encode_first_stage(picture.to(devices.device, devices.dtype_vae))
        # Its mean, without the noise that the host's own img2img draws.
        code = posterior.mode() if hasattr(posterior, "mode") else posterior
        latents: Tensor = self.sd_model.get_first_stage_encoding(code)
        return latents.float().to(self.device)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pictures (b, 3, h, w) float32 in 0..1 of scaled latents."""
        from modules import devices

        pictures = self.sd_model.decode_first_stage(latents.to(devices.device, devices.dtype_vae))
        return (pictures.float() / 2 + 0.5).clamp(0, 1)

    def predict(self, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's output (b, c, h, w) in float32 at noise levels (b,)."""
        # Through the model's own call: with --medvram that is what brings the UNet to its device.
        with alone_with(self.modules()):
            output: Tensor = self.sd_model.apply_model(
                latents.to(self.device, self.dtype),
                self.noise.model_time(t).to(self.device),
                {"c_crossattn": [conditioning.tokens.to(self.device, self.dtype)]},
            )
        return output.float()


def noise_level(denoiser: Any, sigma: Tensor) -> float:
    """The noise level t that the host's sampler calls sigma (1,).

    Args:
        denoiser: the host's wrapper of the UNet for the sampler that runs.
        sigma: k-diffusion's, or what DDIM, PLMS and UniPC count in: timesteps.
    """
    timestep = denoiser.sigma_to_t(sigma) if hasattr(denoiser, "sigma_to_t") else sigma
    return float(to_t(timestep.cpu()))


def loaded_base() -> A1111Base:
    """The loaded checkpoint, clean.

    Raises:
        ConfigError, BaseMismatchError: it cannot be trained upon; says why and what to do.
    """
    from modules import shared

    sd_model = shared.sd_model
    refuse_unsupported(sd_model)
    base = A1111Base(sd_model)
    take_networks_out(base.modules())
    return base


def refuse_unsupported(sd_model: Any) -> None:
    """Say at once what polishing cannot work with.

    Raises:
        ConfigError: says what it is and how to leave it.
    """
    from modules import devices, sd_unet, shared

    if sd_model is None:
        raise ConfigError("no checkpoint is loaded; choose one at the top of the page")
    if shared.cmd_opts.lowvram:
        raise ConfigError(
            "the web UI runs with --lowvram, which moves the UNet through the card piece by piece, but polishing needs "
            "it whole; start with --medvram instead"
        )
    if getattr(sd_unet, "current_unet", None) is not None:
        raise ConfigError(
            "a replacement for the UNet is active (such as TensorRT), but polishing needs the checkpoint's own; set "
            "'SD Unet' to None in the settings"
        )
    if getattr(devices, "fp8", False):
        raise ConfigError(
            "the checkpoint's weights are stored in 8 bits, but polishing needs 16 or 32; switch 'FP8 weight' off in "
            "the settings"
        )
    if getattr(sd_model, "is_sd3", False) or not hasattr(getattr(sd_model, "model", None), "diffusion_model"):
        raise ConfigError(
            f"the loaded checkpoint is a {type(sd_model).__name__} without a UNet, but polishing needs a Stable "
            "Diffusion 1.x; load one of those"
        )


def take_networks_out(roots: Sequence[nn.Module]) -> None:
    """Give the weights back that LoRAs of the last picture are still merged into; the host does so too late.

    It merges lazily, within a layer's call, and undoes it in the next picture's: trained upon as they are, the weights
    would be the last picture's, and would change under the first step.
    """
    networks = sys.modules.get("networks")
    if networks is None or not hasattr(networks, "network_apply_weights"):
        return
    networks.load_networks([])
    with torch.no_grad():
        for root in roots:
            for module in root.modules():
                if getattr(module, "network_current_names", ()):
                    networks.network_apply_weights(module)
