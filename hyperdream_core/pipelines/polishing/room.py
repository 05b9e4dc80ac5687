"""Room for polishing: what memory a base's device has free, and the plan that every host asks before the start."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...bases import BaseFamily
from ..base import Base
from .memory import Memory, Plan, Room, fitting
from .polish_config import PolishConfig

_CGROUP = Path("/sys/fs/cgroup")


def planned(
    family: BaseFamily,
    config: PolishConfig,
    size: int,
    has_start: bool,
    room: Room,
    memory: Memory = "automatic",
) -> Plan:
    """The way to polish for which there is room; the command line, the tab and ComfyUI all ask this.

    Args:
        family: of the base.
        config: settings of the polishing.
        size: of the pictures, px.
        has_start: whether there is a prediction, whose other contexts are preserved in samples of their own.
        room: on the device; see `room_of`.
        memory: whether blocks may be computed twice.

    Raises:
        ConfigError: even the smallest way does not fit; names what would.
    """
    largest = max(config.batch, config.preserve_batch) if has_start and config.preserve else config.batch
    samples = min(largest, config.samples_at_once)
    if config.steps_from(has_start) == 0:
        return Plan(samples_at_once=samples, recomputes=False, size=size, bytes_needed=0.0)
    return fitting(family, size, samples, room, memory)


def room_of(base: Base) -> Room:
    """The room beside a base's weights, by its host's own account if it has one (a method `room`)."""
    tells: Any = getattr(base, "room", None)
    if tells is not None:
        room: Room = tells()
        return room
    unet, *encoders = base.modules()
    # Only where they are is not where the training is can they leave it; see `DiffusersBase.encoders_away`.
    leaves = base.device.type != "cpu" and hasattr(base, "encoders_away")
    idle = sum(bytes_of(encoder.parameters()) for encoder in encoders) if leaves else 0.0
    return room_for(unet, base.device, base.dtype, free_memory(base.device), idle)


def room_for(unet: nn.Module, device: torch.device, dtype: torch.dtype, free: float, idle: float = 0.0) -> Room:
    """The room on a device for training beside this UNet, which may have to be brought there yet.

    Args:
        free: bytes now.
        dtype: that the UNet computes in, which may be another than its weights are stored in.
        idle: bytes that leave the device before the training.
    """
    weights = list(unet.parameters())
    size = torch.finfo(dtype).bits // 8
    return Room(
        free=free - bytes_of(weight for weight in weights if weight.device.type != device.type),
        number_size=size,
        cast_weights=float(sum(weight.numel() * size for weight in weights if weight.dtype != dtype)),
        device=device.type,
        idle=idle,
    )


def bytes_of(weights: Iterable[torch.Tensor]) -> float:
    """Bytes that tensors take."""
    return float(sum(weight.numel() * weight.element_size() for weight in weights))


def free_memory(device: torch.device) -> float:
    """Bytes that this process may still take on a device; infinite where nobody tells."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch keeps for itself without using it is free for us.
        return float(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type not in ("cpu", "mps"):
        return float("inf")
    try:
        # Comes with accelerate and with every host.
        import psutil
    except ImportError:
        return float("inf")
    mapped = getattr(psutil.Process().memory_info(), "shared", 0)
    # Files mapped into this process, as weights are, count as available, but polishing reads them at every step.
    return float(min(psutil.virtual_memory().available - mapped, _left_in_container(_CGROUP)))


def _left_in_container(group: Path) -> float:
    """Bytes below a Linux container's limit; infinite without one."""
    try:
        limit = (group / "memory.max").read_text().strip()
        taken = int((group / "memory.current").read_text())
        cached = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return float("inf")
    if not limit.isdigit():
        return float("inf")
    return float(int(limit) - taken + (int(cached[1]) if cached else 0))
