"""The progress bar, and setting parameters by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

shown: list[tuple[int, int, Any]] = []


class ProgressBar:
    def __init__(self, total: int) -> None:
        self.total = total

    def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
        shown.append((value, total or self.total, preview))


def set_attr_param(module: nn.Module, name: str, value: Tensor) -> None:
    path, _, last = name.rpartition(".")
    owner = module.get_submodule(path)
    assert not (value.is_inference() and not torch.is_inference_mode_enabled())
    setattr(owner, last, nn.Parameter(value, requires_grad=False))
