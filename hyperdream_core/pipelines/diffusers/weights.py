"""Weights of a stranger's file, once they are in the dtype that computes: every number is one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...errors import FileFormatError, quoted


def check_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that hold NaN or infinity, read so or made so by a conversion.

    One pass that writes nothing: 0.03 s of one core for 40 million numbers in fp16 or fp32 (`isfinite` takes 0.2 and
    0.4 s), so 2 s for the 2.6 billion of SDXL's UNet.

    Raises:
        FileFormatError: names the tensor.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not all_finite(tensor):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise FileFormatError(
                path,
                f"tensor {quoted(name, 120)} holds NaN or infinite numbers in {kind}, but only finite ones make a "
                "picture; use another dtype (--dtype bf16 or fp32) if it was converted, or get the file again",
            )


def all_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite, without a copy: none of them leaves the least or the greatest finite."""
    if tensor.numel() == 0:
        return True
    if tensor.element_size() == 1:  # fp8, which has no order in torch
        tensor = tensor.float()
    low, high = torch.aminmax(tensor)
    return math.isfinite(low) and math.isfinite(high)
