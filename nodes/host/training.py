"""A MODEL made ready to be trained on: whole on its device, with weights that gradients pass, and room beside it."""

from __future__ import annotations

from typing import Any

import comfy.model_management as memory
import comfy.utils
from torch import nn

from ...hyperdream_core.errors import ConfigError
from .models import unet_of


def trainable(model: Any) -> Any:
    """The MODEL as a patcher whose weights stay in place while it is trained on.

    Raises:
        ConfigError: ComfyUI streams its weights and cannot make a clone that does not.
    """
    if not getattr(model, "is_dynamic", lambda: False)():
        return model
    try:
        return model.clone(disable_dynamic=True)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"ComfyUI streams this model's weights and cannot keep them in place for polishing ({error}); load it with "
            "Load Checkpoint, or start ComfyUI with --disable-dynamic-vram"
        ) from error


def load_for_training(patcher: Any, bytes_needed: float) -> None:
    """Bring the whole MODEL to its device with room beside it, and make its weights ones that gradients pass.

    Weights loaded within inference mode are replaced by equal clones, one at a time, and may stay so.
    """
    memory.load_models_gpu([patcher], memory_required=bytes_needed, force_full_load=True)
    leave_inference_mode(unet_of(patcher))


def leave_inference_mode(network: nn.Module) -> None:
    """Replace a network's inference tensors by clones, one by one."""
    for name, weight in list(network.named_parameters()):
        if weight.is_inference():
            comfy.utils.set_attr_param(network, name, weight.clone())


def room_beside(patcher: Any) -> float:
    """Memory (bytes) that is or can be made free on the patcher's device, once its own weights are there."""
    device = patcher.load_device
    free = float(memory.get_free_memory(device))
    if device.type == "cpu":
        # There the weights are already, and nothing that is unloaded gives memory back.
        return free
    others = sum(one.model_loaded_memory() for one in memory.current_loaded_models if one.device == device)
    return free + others - float(patcher.model_size())
