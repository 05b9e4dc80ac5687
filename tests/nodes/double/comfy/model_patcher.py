"""A model with patches: clones share the module, weights change on loading and come back bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .patcher_extension import WrappersMP, wrapped


class ModelPatcher:
    def __init__(self, model: nn.Module, load_device: torch.device, offload_device: torch.device) -> None:
        self.model, self.load_device, self.offload_device = model, load_device, offload_device
        self.patches: dict[str, list[tuple[float, Any]]] = {}
        self.model_options: dict[str, Any] = {"transformer_options": {"wrappers": {}}}

    def clone(self) -> ModelPatcher:
        twin = ModelPatcher(self.model, self.load_device, self.offload_device)
        twin.patches = {key: list(patches) for key, patches in self.patches.items()}
        options = self.model_options["transformer_options"]
        kinds = options["wrappers"].items()
        copied = {kind: {key: list(found) for key, found in keys.items()} for kind, keys in kinds}
        twin.model_options = {"transformer_options": {**options, "wrappers": copied}}
        return twin

    def add_patches(self, patches: dict[str, Any], strength: float = 1.0) -> list[str]:
        known = dict(self.model.named_parameters(remove_duplicate=False))
        taken = [key for key in patches if key in known]
        for key in taken:
            self.patches.setdefault(key, []).append((strength, patches[key]))
        return taken

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Callable[..., Any]) -> None:
        wrappers = self.model_options["transformer_options"]["wrappers"]
        wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def get_model_object(self, name: str) -> Any:
        return getattr(self.model, name)

    def model_size(self) -> int:
        return sum(weight.numel() * weight.element_size() for weight in self.model.parameters())

    def loaded_size(self) -> int:
        return self.model_size()

    def patch(self) -> None:
        """Put this clone's weights in place of whichever clone's were there."""
        backup = self.model.__dict__.setdefault("backup", {})
        known = dict(self.model.named_parameters(remove_duplicate=False))
        for key, original in backup.items():
            known[key].data = original
        backup.clear()
        for key, patches in self.patches.items():
            backup[key] = known[key].data
            known[key].data = known[key].data + sum(strength * adapter.delta() for strength, adapter in patches)

    def run(self, x: Tensor, timesteps: Tensor, context: Tensor, sigma: float = 1.0) -> Tensor:
        """One call of the UNet as sampling makes it: patched, through the wrappers, arguments by position."""
        self.patch()
        options = self.model_options["transformer_options"]
        options = {**options, "sigmas": torch.full((len(x),), sigma), "cond_or_uncond": [0]}
        return call_unet(self.model.diffusion_model, x, timesteps, context, options)


def call_unet(unet: nn.Module, x: Tensor, timesteps: Tensor, context: Tensor, options: dict[str, Any]) -> Tensor:
    """The UNet through its wrappers, arguments by position."""
    call = wrapped(unet, unet, WrappersMP.DIFFUSION_MODEL, options)
    result: Tensor = call(x, timesteps, context, None, None, options)
    return result
