"""How many threads a command computes with on a CPU: one for the miniature, and as many as are free for larger bases.

At the miniature's sizes more threads never help: a step is over before they have found together. And threads that wait
for one another collapse where other programs share the cores: each step then takes as long as its unluckiest thread.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..bundled import SHIPPED

if TYPE_CHECKING:
    import torch

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""What a container may use of the processor: microseconds in a period, and the period."""


def use_threads_for(family: str, device: torch.device) -> None:
    """Set torch's threads for a base of this family on this device; elsewhere than on a CPU they are left alone."""
    import torch

    if device.type == "cpu":
        torch.set_num_threads(1 if family == SHIPPED else free_threads(torch.get_num_threads()))


def free_threads(at_most: int) -> int:
    """How many threads find a core of their own, 1 to `at_most`."""
    return max(1, min(at_most, round(min(_own_cores(), _quota(), _idle_cores()))))


def _own_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _idle_cores() -> float:
    """Cores that nothing has run on in the last minute, on average."""
    cores = float(os.cpu_count() or 1)
    try:
        return cores - os.getloadavg()[0]
    except (AttributeError, OSError):
        return cores  # Windows does not say


def _quota() -> float:
    """Cores' worth of time that this container may use."""
    try:
        most, period = _QUOTA.read_text("ascii").split()
        return float(most) / float(period)
    except (OSError, ValueError, ZeroDivisionError):
        return float("inf")
