"""One safetensors file with a kind and a version: checked on reading, atomic on writing.

Files come from strangers. A file is read only if it is whole, holds finite floating-point tensors and says that it
is of the kind asked for, in a version this release knows; anything else is refused by name. The writer is our own
because the library's orders the metadata at random: equal contents give equal bytes here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import FileFormatError, OutputError, quoted
from ..regular_file import check_regular, unreadable
from ..whole_file import as_text, whole_file

_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_NAMES = set(_DTYPES.values())
_WHOLE_DTYPES = {torch.int8: "I8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64", torch.uint8: "U8"}
_WHOLE = set(_WHOLE_DTYPES.values())
_LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
_LARGEST_CHECKED = 10_000_000
"""bytes of a header that is looked through for names that stand twice"""
_MOST_TENSORS = 100_000
_MOST_AXES = 8
"""torch's own limit is 64; weights have at most 5"""
_LONGEST_AXIS = 2**31 - 1
_LONGEST_NAME = 1000
"""characters of a tensor's name; what reads names is then quick whatever they are"""
_OLD_TORCH_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class Entry(NamedTuple):
    """What a file's header says of a tensor."""

    shape: tuple[int, ...]
    dtype: str
    """in the format's words: F32, BF16, F8_E4M3, I8 ..."""


def read_container(path: Path | str, kind: str, newest_version: int) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and tensors of a file of ours.

    Raises:
        FileFormatError: not readable as safetensors, of another kind, newer, or with numbers that are not finite.
    """
    path = Path(path)
    metadata, tensors = read_tensors(path)
    _check_kind(path, metadata, kind, newest_version)
    return metadata, tensors


def open_mapped(path: Path | str, kind: str, newest_version: int) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and tensors of a file of ours without reading their numbers: these lie in the mapped file.

    Any number of processes share the memory, and rows are read when they are taken. The header and the file's size are
    checked, the numbers are not; the tensors must not be written to.

    Raises:
        FileFormatError: not readable as safetensors, cut short, of another kind, or newer.
    """
    path = Path(path)
    with _opened(path) as file:
        metadata = dict(file.metadata() or {})
        _check_kind(path, metadata, kind, newest_version)
        names = file.keys()
        for name in names:
            _check_dtype(path, name, file, may_be_whole=True)
        return metadata, {name: file.get_tensor(name) for name in names}


def _check_kind(path: Path, metadata: Mapping[str, str], kind: str, newest_version: int) -> None:
    found = metadata.get("kind")
    if found != kind:
        holds = f"holds {quoted(found)}" if found else "does not say what it holds"
        raise FileFormatError(path, f"{holds}, but {kind!r} is expected. Choose a file of that kind.")
    version = metadata.get("version", "")
    if not re.fullmatch("[0-9]{1,9}", version):
        raise FileFormatError(
            path,
            f"has format version {quoted(version)}, but a whole number is expected. The file was altered; get it "
            "again.",
        )
    if int(version) > newest_version:
        raise FileFormatError(
            path, f"has format version {version}, but this release reads up to {newest_version}. Update HyperDream."
        )


def read_names(path: Path | str) -> tuple[dict[str, str], list[str]]:
    """The metadata and the tensors' names of any safetensors file, from its header alone.

    Raises:
        FileFormatError: not such a file, or not a whole one.
    """
    with _opened(Path(path)) as file:
        return dict(file.metadata() or {}), sorted(file.keys())


def read_table(path: Path | str) -> tuple[dict[str, str], dict[str, Entry]]:
    """The metadata and what the header says of each tensor of any safetensors file: in a moment, whatever its size.

    Raises:
        FileFormatError: not such a file, or not a whole one; names and shapes that nothing has.
    """
    with _opened(Path(path)) as file:
        slices = {name: file.get_slice(name) for name in sorted(file.keys())}
        table = {name: Entry(tuple(one.get_shape()), str(one.get_dtype())) for name, one in slices.items()}
        return dict(file.metadata() or {}), table


def read_tensors(
    path: Path | str, names: Collection[str] | None = None, numbers: Collection[str] = ()
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and tensors of any safetensors file that is whole and holds finite floating-point numbers.

    Args:
        path: of the file.
        names: which tensors to read and check; None is all of them.
        numbers: those of them that may also be whole numbers.

    Raises:
        FileFormatError: otherwise.
    """
    path = Path(path)
    with _opened(path) as file:
        metadata = dict(file.metadata() or {})
        chosen = sorted(file.keys() if names is None else names)
        tensors = {name: _tensor(path, name, file, may_be_whole=name in numbers) for name in chosen}
    for name, tensor in tensors.items():
        # As the float32 that everything is computed in: a float64 may be finite and too large for it.
        if not bool(torch.isfinite(tensor.float() if tensor.dtype == torch.float64 else tensor).all()):
            raise FileFormatError(
                path,
                f"tensor {quoted(name, 120)} holds NaN or infinite numbers, but only finite ones make a picture. "
                "Make the file "
                "again, with a lower learning rate if it was trained.",
            )
    return metadata, tensors


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    _check_start(path)
    try:
        with safe_open(path, framework="pt") as file:
            _check_table(path, file)
            _check_unique(path)
            yield file
    except SafetensorError as error:
        raise FileFormatError(
            path, f"is not a readable safetensors file ({str(error)[:200]}). It is damaged or altered; get it again."
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error


def _check_unique(path: Path) -> None:
    """Refuse a name that stands twice, of which the library takes the last; that all is JSON it has seen itself."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= _LARGEST_CHECKED else b"{}"

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            twice = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
            raise FileFormatError(
                path, f"names {quoted(twice, 120)} twice, and only one can be meant. It was altered; get it again."
            )
        return entries

    json.loads(text, object_pairs_hook=unique)


def _check_table(path: Path, file: safe_open) -> None:
    """Refuse names and shapes that nothing has and that would make readers slow or fail."""
    names = file.keys()
    if len(names) > _MOST_TENSORS:
        raise FileFormatError(
            path, f"holds {len(names):,} tensors, but at most {_MOST_TENSORS:,} are expected. Use another file."
        )
    for name in names:
        shape = file.get_slice(name).get_shape() if len(name) <= _LONGEST_NAME else []
        if len(name) > _LONGEST_NAME or len(shape) > _MOST_AXES or max(shape, default=0) > _LONGEST_AXIS:
            raise FileFormatError(
                path,
                f"tensor {quoted(name, 120)} has {len(shape)} axes, {quoted(shape)}, and a name of {len(name):,} "
                f"characters, but at most {_MOST_AXES} axes of under 2^31 and {_LONGEST_NAME:,} characters are "
                "expected. The file was altered; get it again.",
            )


def write_container(
    path: Path | str,
    kind: str,
    version: int,
    metadata: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    numbers: Collection[str] = (),
) -> None:
    """Write a file of ours, atomically; `kind` and `version` are added to the metadata; else as `write_tensors`.

    Raises:
        OutputError: the folder cannot be written, the disk is full, or a tensor is not finite.
    """
    write_tensors(path, {"kind": kind, "version": str(version), **metadata}, tensors, numbers)


def write_tensors(
    path: Path | str, metadata: Mapping[str, str], tensors: Mapping[str, Tensor], numbers: Collection[str] = ()
) -> None:
    """Write a safetensors file, atomically: a failure or an interrupt leaves the old file, or none.

    Args:
        path: of the file.
        metadata: texts.
        tensors: of floating-point numbers.
        numbers: those of them that may also be whole numbers.

    Raises:
        OutputError: as `write_container`.
    """
    path = Path(path)
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES and not (name in numbers and tensor.dtype in _WHOLE_DTYPES):
            raise OutputError(
                f"{path.name}: tensor {name!r} holds {tensor.dtype} numbers, but {', '.join(sorted(_NAMES))} are "
                "expected; nothing was saved. Convert it."
            )
        if not bool(torch.isfinite(tensor).all()):
            raise OutputError(
                f"{path.name}: tensor {name!r} holds NaN or infinite numbers, but only finite ones are written; "
                "nothing was saved. Train with a lower learning rate."
            )
    with whole_file(path) as part, open(part, "xb") as file:
        file.write(_header(metadata, tensors))
        for data in _payload(tensors):
            file.write(data)


def payload_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of the tensors' bytes as `write_tensors` orders them: a file's content without its metadata."""
    digest = hashlib.sha256()
    for data in _payload(tensors):
        digest.update(data)
    return digest.hexdigest()


def _ordered(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Widest numbers first, as the format asks, so that each tensor lies aligned; then by name."""
    return sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))


def _header(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> bytes:
    entries: dict[str, object] = {
        "__metadata__": {as_text(key): as_text(text) for key, text in sorted(metadata.items())}
    }
    end = 0
    for name, tensor in _ordered(tensors):
        start, end = end, end + tensor.numel() * tensor.element_size()
        dtype = _DTYPES.get(tensor.dtype) or _WHOLE_DTYPES[tensor.dtype]
        entries[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _payload(tensors: Mapping[str, Tensor]) -> Iterator[bytes]:
    for _, tensor in _ordered(tensors):
        # NumPy has no bfloat16, and bytes are bytes.
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _check_start(path: Path) -> None:
    """Refuse what is recognisably something else, with a better reason than the parser's."""
    size = check_regular(path)
    if as_text(str(path)) != str(path):
        raise FileFormatError(
            path,
            "lies at a path that is no UTF-8, which the safetensors library cannot open. Rename the file or folder.",
        )
    try:
        with open(path, "rb") as file:
            start = file.read(8)
    except OSError as error:
        raise unreadable(path, error) from error
    if size == 0:
        raise FileFormatError(path, "is empty (0 bytes), but a safetensors file is expected. Get it again.")
    length = int.from_bytes(start, "little")
    is_whole = size >= 10 and length <= size - 8 and length <= _LARGEST_HEADER
    # The length of a header may begin with the same bytes.
    if not is_whole and start.startswith(_OLD_TORCH_STARTS):
        raise FileFormatError(
            path,
            "is an old PyTorch file (.ckpt, .pt, .bin) under another name, but a safetensors file is expected. Old "
            "files can run code and are never opened; ask its author for a safetensors file.",
        )
    if not is_whole:
        raise FileFormatError(
            path,
            f"announces a header of {length} bytes in a file of {size}, so it is truncated or no safetensors file. "
            "Get it again.",
        )


def _tensor(path: Path, name: str, file: safe_open, may_be_whole: bool) -> Tensor:
    _check_dtype(path, name, file, may_be_whole)
    # A copy: the original is the mapped file itself, which Windows then refuses to replace.
    return file.get_tensor(name).clone()


def _check_dtype(path: Path, name: str, file: safe_open, may_be_whole: bool) -> None:
    dtype = file.get_slice(name).get_dtype()
    if dtype not in _NAMES and not (may_be_whole and dtype in _WHOLE):
        raise FileFormatError(
            path,
            f"tensor {quoted(name, 120)} holds {dtype} numbers, but {', '.join(sorted(_NAMES))} are expected. Use a "
            "file that was saved unquantised.",
        )
