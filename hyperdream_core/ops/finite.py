"""What leaves a pipeline is of the shape that was asked for, and every number in it is one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import OutputError


def is_finite(*tensors: Tensor | None) -> bool:
    """Whether no number in any of the tensors is NaN or infinite; whole numbers never are.

    Nothing is written, because neither leaves the least and the greatest number finite: 0.03 s of one core for 40
    million numbers in fp16 or fp32, where `isfinite` takes 0.2 and 0.4 s.
    """
    return all(_is_finite(tensor) for tensor in tensors if tensor is not None and tensor.is_floating_point())


def _is_finite(tensor: Tensor) -> bool:
    if tensor.numel() == 0:
        return True
    if tensor.element_size() == 1:  # fp8, which has no order in torch
        tensor = tensor.float()
    low, high = torch.aminmax(tensor.detach())
    return math.isfinite(low) and math.isfinite(high)


def sound(tensor: Tensor, what: str, remedy: str, shape: tuple[int | None, ...] | None = None) -> Tensor:
    """The tensor itself, once it has been seen to be finite and of the right shape.

    Args:
        tensor: about to leave.
        what: what errors call it, such as "the picture".
        remedy: what to do if it is not, as a sentence without a full stop.
        shape: that it must have; None, in a place, is any size.

    Raises:
        OutputError: it is not.
    """
    if shape is not None and (
        tensor.dim() != len(shape) or any(w not in (None, s) for w, s in zip(shape, tensor.shape, strict=True))
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise OutputError(f"{what} came out with the shape {tuple(tensor.shape)}, expected ({wanted}); {remedy}")
    if not is_finite(tensor):
        count = int((~tensor.isfinite()).sum())
        raise OutputError(f"{what} holds {count:,} of {tensor.numel():,} numbers that are not finite; {remedy}")
    return tensor
