"""Weights of a stranger's files: what their headers say of them, read one by one, and every number is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from ...errors import FileFormatError, quoted
from ...formats.container import Entry, read_table
from ...ops.finite import is_finite

_READABLE = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
"""What stands for itself; small floats are widened without a loss."""
_SCALE_ENDS = (
    "scaled_fp8",
    "scale_weight",
    "scale_input",
    "weight_scale",
    "weight_scale_2",
    "input_scale",
    "comfy_quant",
    ".absmax",
    ".quant_map",
    ".SCB",
    ".qweight",
    ".qzeros",
)
"""Ends of names by which ComfyUI, bitsandbytes and GPTQ keep what gives quantised weights their meaning."""
_UNQUANTISED = "use the file in fp16, bf16 or fp32"


@dataclass(frozen=True, eq=False)
class WeightFiles:
    """The tensors of one file, or of the several that a network was cut into."""

    path: Path
    """the first of them, for messages"""
    table: Mapping[str, Entry]
    places: Mapping[str, Path]
    """which file each lies in"""
    metadata: Mapping[str, str]
    """of the first"""

    @classmethod
    def of(cls, paths: Sequence[Path]) -> WeightFiles:
        """From the headers of one file or several, in a moment.

        Raises:
            FileFormatError: one is no safetensors file, or holds quantised weights with scales beside them.
        """
        table: dict[str, Entry] = {}
        places: dict[str, Path] = {}
        metadata: dict[str, str] = {}
        for path in reversed(paths):
            metadata, found = read_table(path)
            scale = next((name for name in found if name.endswith(_SCALE_ENDS)), None)
            if scale is not None:
                raise FileFormatError(
                    path,
                    f"is quantised (scaled fp8, int8 or 4 bits): it holds {quoted(scale, 120)}, a scale of other "
                    f"tensors' numbers, which is not understood; {_UNQUANTISED}",
                )
            table |= found
            places |= dict.fromkeys(found, path)
        return cls(paths[0], table, places, metadata)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape."""
        return {name: entry.shape for name, entry in self.table.items()}

    def check_numbers(self, name: str) -> None:
        """See that a tensor's numbers stand for themselves.

        Raises:
            FileFormatError: whole numbers, or a kind that nobody knows.
        """
        dtype = self.table[name].dtype
        if dtype not in _READABLE:
            raise FileFormatError(
                self.places[name],
                f"is quantised: tensor {quoted(name, 120)} holds {dtype} numbers, and no scale gives them a meaning; "
                f"{_UNQUANTISED}",
            )

    @contextmanager
    def opened(self) -> Iterator[Callable[[str], Tensor]]:
        """Read tensors by name while the context is open."""
        with ExitStack() as stack:
            files = {path: stack.enter_context(safe_open(path, framework="pt")) for path in set(self.places.values())}
            yield lambda name: files[self.places[name]].get_tensor(name)


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
