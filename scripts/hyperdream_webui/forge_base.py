"""Forge's loaded checkpoint as the core's `Base`: as Automatic1111's, but under three traps of its own.

Its weights are inference tensors, its UNet adds residuals in place, and whatever its encoders give is an inference
tensor again. All three make gradients fail, and none can be seen before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hyperdream_core.errors import ConfigError
from hyperdream_core.models.one_thread import alone_with
from hyperdream_core.ops.changes import LayerChange
from hyperdream_core.ops.noise import DiscreteDiffusion, to_t
from hyperdream_core.pipelines.base import Conditioning
from hyperdream_core.pipelines.polishing.memory import Room
from hyperdream_core.pipelines.polishing.room import bytes_of, room_for

from .a1111_base import LoadedBase

_TRAINABLE = (torch.float32, torch.float16, torch.bfloat16)


class ForgeBase(LoadedBase):
    """The checkpoint in Forge's `forge_objects_original`, which never carries LoRAs."""

    def __init__(self, sd_model: Any) -> None:
        from backend import memory_management

        self.patcher = sd_model.forge_objects_original.unet
        model = self.patcher.model
        super().__init__(sd_model, model.diffusion_model, memory_management.get_torch_device(), model.computation_dtype)
        predictor = model.predictor
        prediction = "v_prediction" if "v" in str(predictor.prediction_type) else "epsilon"
        sigmas = predictor.sigmas.detach().to("cpu", torch.float64)
        self.noise = DiscreteDiffusion((1.0 / (sigmas.square() + 1.0)).float(), prediction)
        # Before anything is frozen: flags cannot be set on inference tensors, and these are replaced.
        self._load()
        self._is_encoding = True

    def modules(self) -> Sequence[nn.Module]:
        return (self.unet,)

    def text_encoder(self) -> nn.Module:
        raise ConfigError(
            "the identity also changes the text encoder, which cannot be polished in Forge; polish one of the "
            "'attention' layers only, or use ComfyUI"
        )

    @contextmanager
    def adapted(
        self, pairs: Mapping[str, LayerChange], strength: float | Tensor = 1.0, samples_each: int = 1
    ) -> Iterator[None]:
        """As in Automatic1111, and with residuals that leave their input as it is."""
        with ExitStack() as stack:
            stack.enter_context(alone_with(self.modules()))
            if self._is_encoding:
                # Text encoder and VAE may have driven the UNet from its device.
                self._load()
                self._is_encoding = False
            stack.enter_context(without_in_place_residuals(self.unet))
            stack.enter_context(super().adapted(pairs, strength, samples_each))
            yield

    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts as txt2img does."""
        with alone_with(self.modules()):
            return Conditioning(self.sd_model.get_learned_conditioning(list(prompts)).clone().float())

    def _encoded(self, picture: Tensor) -> Tensor:
        latents: Tensor = self.sd_model.encode_first_stage(picture)
        return latents.clone().float().to(self.device)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pictures (b, 3, h, w) float32 in 0..1 of scaled latents."""
        pictures: Tensor = self.sd_model.decode_first_stage(latents).clone()
        return (pictures.float() / 2 + 0.5).clamp(0, 1)

    def predict(self, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's output (b, c, h, w) in float32 at noise levels (b,)."""
        with alone_with(self.modules()):
            output: Tensor = self.unet(
                latents.to(self.device, self.dtype),
                self.noise.model_time(t).to(self.device).float(),
                context=conditioning.tokens.to(self.device, self.dtype),
                transformer_options={},
            )
        return output.float()

    def room(self) -> Room:
        """By Forge's own account, with what it takes from the device when it is asked for room."""
        from backend import memory_management

        free = float(memory_management.get_free_memory(self.device))
        if self.device.type != "cpu":
            others = [
                one.model.model for one in memory_management.current_loaded_models if one.model is not self.patcher
            ]
            weights = [weight for other in others for weight in other.parameters()]
            free += bytes_of(weight for weight in weights if weight.device == self.device)
        return room_for(self.unet, self.device, self.dtype, free)

    @contextmanager
    def encoders_away(self, with_text: bool = True) -> Iterator[None]:
        """Have Forge take all but the UNet from the device; it brings them back when they are asked for."""
        from backend import memory_management

        if self.device.type != "cpu":
            loaded = memory_management.current_loaded_models
            memory_management.free_memory(
                float("inf"), self.device, keep_loaded=[one for one in loaded if one.model is self.patcher]
            )
        yield

    def _load(self) -> None:
        """Bring the UNet to its device, without LoRAs, as weights that gradients pass."""
        from backend import memory_management

        memory_management.load_model_gpu(self.patcher)
        self.patcher.refresh_loras()
        leave_inference_mode(self.unet)


def noise_level(model: Any, sigma: Tensor) -> float:
    """The noise level t that the host calls sigma (1,) for its loaded model."""
    return float(to_t(model.predictor.timestep(sigma).cpu()))


def loaded_base() -> ForgeBase:
    """The checkpoint that is chosen, loaded if it is not yet; call it in the thread for models.

    Raises:
        ConfigError, BaseMismatchError: it cannot be trained upon; says why and what to do.
    """
    from modules import sd_models

    sd_model, _ = sd_models.forge_model_reload()
    unet = getattr(getattr(sd_model, "forge_objects_original", None), "unet", None)
    storage = getattr(getattr(unet, "model", None), "storage_dtype", None)
    if storage not in _TRAINABLE:
        raise ConfigError(
            f"the checkpoint's weights are stored as {storage}, but polishing needs 16 or 32 bit floats; set "
            "'Diffusion in Low Bits' to Automatic, or load another checkpoint"
        )
    return ForgeBase(sd_model)


def leave_inference_mode(network: nn.Module) -> None:
    """Replace a network's inference tensors by clones, one by one; they may stay so."""
    with torch.inference_mode(False), torch.no_grad():
        for module in network.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if parameter.is_inference():
                    module._parameters[name] = nn.Parameter(parameter.clone(), requires_grad=False)
            for name, buffer in list(module.named_buffers(recurse=False)):
                if buffer.is_inference():
                    module._buffers[name] = buffer.clone()


@contextmanager
def without_in_place_residuals(unet: nn.Module) -> Iterator[None]:
    """Give each transformer block's attentions a copy of their input: the block then adds to its own in place."""
    with ExitStack() as stack:
        module: Any
        for module in unet.modules():
            if type(module).__name__ != "BasicTransformerBlock":
                continue
            for norm in (module.norm1, module.norm2, module.norm3):
                handle = norm.register_forward_pre_hook(lambda _, inputs: (inputs[0].clone(), *inputs[1:]))
                stack.callback(handle.remove)
        yield
