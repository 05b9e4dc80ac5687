"""Devices, memory and the Stop button, of a computer without a graphics card."""

from __future__ import annotations

from typing import Any

import torch


class InterruptProcessingException(BaseException):
    """The user pressed Stop."""


stop_pressed = False
free = 8e9
loaded: list[tuple[Any, float]] = []


def reset() -> None:
    """As at the start of a prompt."""
    global stop_pressed, free
    stop_pressed, free = False, 8e9
    loaded.clear()


def throw_exception_if_processing_interrupted() -> None:
    global stop_pressed
    if stop_pressed:
        stop_pressed = False
        raise InterruptProcessingException


def get_torch_device() -> torch.device:
    return torch.device("cpu")


unet_offload_device = vae_offload_device = get_torch_device


def get_free_memory(device: torch.device) -> float:
    return free


def load_models_gpu(patchers: list[Any], memory_required: float = 0.0, force_full_load: bool = False) -> None:
    loaded.extend((patcher, memory_required) for patcher in patchers)
    for patcher in patchers:
        patcher.patch()


def soft_empty_cache() -> None:
    """Nothing to give back here."""
