"""Weights of a stranger's file, once they are in the dtype that computes: every number is one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ...errors import FileFormatError, quoted
from ...ops.finite import is_finite


def check_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that hold NaN or infinity, read so or made so by a conversion.

    One pass that writes nothing, so about 2 s for the 2.6 billion numbers of SDXL's UNet.

    Raises:
        FileFormatError: names the tensor.
    """
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise FileFormatError(
                path,
                f"tensor {quoted(name, 120)} holds NaN or infinite numbers in {kind}, but only finite ones make a "
                "picture; use another dtype (--dtype bf16 or fp32) if it was converted, or get the file again",
            )
