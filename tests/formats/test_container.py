from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hyperdream_core.errors import FileFormatError, OutputError
from hyperdream_core.formats.container import (
    open_mapped,
    payload_digest,
    read_container,
    read_tensors,
    write_container,
    write_tensors,
)

TENSORS = {
    "b": torch.arange(35.0).reshape(5, 7),
    "a": torch.arange(3.0).half(),
    "c": torch.tensor(0.5, dtype=torch.bfloat16),
    "d": torch.arange(2.0, dtype=torch.float64),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "thing.safetensors"


def write(path: Path, version: int = 2) -> None:
    write_container(path, "test-kind", version, {"note": "für Sofía", "z": "1"}, TENSORS)


def raw(path: Path, header: object, payload: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + payload)


def refused(path: Path, words: str) -> None:
    with pytest.raises(FileFormatError, match=words) as caught:
        read_container(path, "test-kind", 2)
    assert str(caught.value).startswith(f"{path.name}: ")
    assert str(caught.value).endswith(".")


def test_what_is_written_is_read_back_bit_for_bit(path: Path) -> None:
    write(path)
    metadata, tensors = read_container(path, "test-kind", 2)
    assert metadata == {"kind": "test-kind", "version": "2", "note": "für Sofía", "z": "1"}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_the_safetensors_library_reads_our_files_and_we_read_its(path: Path) -> None:
    write(path)
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in load_file(path).items())
    save_file(TENSORS, path, metadata={"kind": "test-kind", "version": "1"})
    metadata, tensors = read_container(path, "test-kind", 2)
    assert metadata["version"] == "1"
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in tensors.items())


def test_equal_contents_give_equal_bytes_whatever_their_order(path: Path) -> None:
    write(path)
    first = path.read_bytes()
    write_container(path, "test-kind", 2, {"z": "1", "note": "für Sofía"}, dict(reversed(TENSORS.items())))
    assert path.read_bytes() == first


def test_the_payload_digest_ignores_metadata_and_is_that_of_the_bytes_after_the_header(path: Path) -> None:
    import hashlib

    write(path)
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    assert payload_digest(TENSORS) == hashlib.sha256(data[start:]).hexdigest()


def test_views_and_transposes_are_written_as_they_look(path: Path) -> None:
    write_container(path, "test-kind", 1, {}, {"t": TENSORS["b"].T, "row": TENSORS["b"][1]})
    _, tensors = read_container(path, "test-kind", 1)
    assert torch.equal(tensors["t"], TENSORS["b"].T)
    assert torch.equal(tensors["row"], TENSORS["b"][1])


def test_a_file_cut_anywhere_is_refused(path: Path) -> None:
    write(path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 13):
        path.write_bytes(whole[:length])
        with pytest.raises(FileFormatError, match=r"[Gg]et it again"):
            read_tensors(path)


def test_zero_bytes_are_refused(path: Path) -> None:
    path.write_bytes(b"")
    refused(path, "is empty")


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_renamed_pickle_is_refused_unopened(path: Path, is_zip: bool) -> None:
    torch.save(TENSORS, path, _use_new_zipfile_serialization=is_zip)
    refused(path, "an old PyTorch file.*never opened; ask its author")


@pytest.mark.parametrize(
    ("header", "payload"),
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(4)),  # promises more than there is
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(12)),  # and less
        ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, bytes(8)),  # shape against offsets
        ({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}}, bytes(8)),  # overflow
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)),  # a hole
        (
            {
                "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            },
            bytes(4),
        ),  # overlapping
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
        ({"a": {"dtype": "X99", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        ({"__metadata__": {"kind": 3}}, b""),
        (b"[" * 5000, b""),
        (b"not json", b""),
        (b"\xff\xfe\xfd\xfc", b""),
    ],
)
def test_a_header_that_lies_is_refused(path: Path, header: object, payload: bytes) -> None:
    raw(path, header, payload)
    refused(path, "not a readable safetensors file")


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9, 100])
def test_a_huge_header_length_is_refused(path: Path, length: int) -> None:
    path.write_bytes(length.to_bytes(8, "little") + b"{}" * 20)
    refused(path, f"announces a header of {length} bytes in a file of 48")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_numbers_that_are_not_finite_are_neither_read_nor_written(
    path: Path, number: float, dtype: torch.dtype
) -> None:
    bad = {"good": torch.zeros(3), "bad": torch.tensor([1.0, number], dtype=dtype)}
    with pytest.raises(OutputError, match=r"thing.safetensors: tensor 'bad' holds NaN.*nothing was saved"):
        write_container(path, "test-kind", 1, {}, bad)
    assert not path.exists()
    save_file(bad, path, metadata={"kind": "test-kind", "version": "1"})
    refused(path, "tensor 'bad' holds NaN or infinite numbers")


def test_integers_are_refused(path: Path) -> None:
    save_file({"a": torch.arange(3)}, path, metadata={"kind": "test-kind", "version": "1"})
    refused(path, "tensor 'a' holds I64 numbers, but BF16, F16, F32, F64 are expected")
    with pytest.raises(OutputError, match=r"tensor 'a' holds torch.int64 numbers.*nothing was saved"):
        write_container(path, "test-kind", 1, {}, {"a": torch.arange(3)})


def test_a_newer_version_and_another_kind_are_refused(path: Path) -> None:
    write(path, version=3)
    refused(path, "has format version 3, but this release reads up to 2. Update HyperDream")
    with pytest.raises(FileFormatError, match="holds 'test-kind', but 'other-kind' is expected"):
        read_container(path, "other-kind", 3)
    save_file(TENSORS, path)
    refused(path, "does not say what it holds, but 'test-kind' is expected")


@pytest.mark.parametrize("version", ["", "-1", "1.5", "two", "9" * 5000, "²"])
def test_a_version_that_is_no_number_is_refused(path: Path, version: str) -> None:
    save_file(TENSORS, path, metadata={"kind": "test-kind", "version": version})
    refused(path, "but a whole number is expected")


def test_a_missing_file_and_a_folder_are_refused(path: Path) -> None:
    refused(path, "cannot be opened|is a folder")
    path.mkdir()
    refused(path, "cannot be opened|is a folder")


def test_a_failing_write_leaves_the_old_file_and_no_litter(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"No space left on device.*is as it was. Free some space"):
        write_container(path, "test-kind", 1, {}, {"new": torch.zeros(3)})

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_container(path, "test-kind", 1, {}, {"new": torch.zeros(3)})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"nowhere.*cannot be written.*choose another folder"):
        write(tmp_path / "nowhere" / "thing.safetensors")


def test_metadata_in_another_encoding_is_written_escaped_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "notes.safetensors"
    write_container(path, "test", 1, {"notes": "caf\udce9 \ud800 é"}, {"one": torch.ones(1)})
    assert read_container(path, "test", 1)[0]["notes"] == "caf\\udce9 \\ud800 é"


@pytest.mark.parametrize("axes", [9, 64, 65, 1000])
def test_more_axes_than_weights_have_are_refused_before_any_is_made(path: Path, axes: int) -> None:
    raw(path, {"a": {"dtype": "F32", "shape": [1] * axes, "data_offsets": [0, 4]}}, bytes(4))
    refused(path, f"tensor 'a' has {axes} axes")


def test_an_empty_tensor_of_an_endless_axis_is_refused(path: Path) -> None:
    raw(path, {"a": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}}, b"")
    refused(path, "tensor 'a' has 2 axes")


def test_a_name_that_would_fill_the_screen_is_refused_in_a_short_sentence(path: Path) -> None:
    raw(path, {"a\n" * 100_000: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4))
    refused(path, r"tensor 'a\\na\\n.*'\.\.\. has 0 axes.* a name of 200,000 characters")


def test_more_tensors_than_any_model_has_are_refused(path: Path) -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    raw(path, {str(number): entry for number in range(100_001)}, b"")
    refused(path, "holds 100,001 tensors")


def test_a_float64_that_no_float32_can_hold_is_refused(path: Path) -> None:
    save_file({"a": torch.tensor([1e300], dtype=torch.float64)}, path, metadata={"kind": "test-kind", "version": "1"})
    refused(path, "tensor 'a' holds NaN or infinite numbers")


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x1580])
def test_a_header_whose_length_begins_like_a_pickle_is_read(path: Path, length: int) -> None:
    text = json.dumps({"__metadata__": {"kind": "test-kind", "version": "1"}}).encode()
    raw(path, text + b" " * (length - len(text)))
    assert read_container(path, "test-kind", 1)[1] == {}


@pytest.mark.skipif(os.name == "nt", reason="has no such files")
def test_a_pipe_is_refused_without_waiting(path: Path) -> None:
    os.mkfifo(path)
    refused(path, "is a pipe or a device")


@pytest.mark.skipif(sys.platform != "linux", reason="takes no such names")
def test_a_name_that_is_no_text_is_refused_with_the_remedy(path: Path) -> None:
    write(path)
    strange = path.with_name(os.fsdecode(b"\xff\xfe.safetensors"))
    path.rename(strange)
    with pytest.raises(FileFormatError, match=r"\\udcff\\udcfe.safetensors: lies at a path that is no UTF-8.*Rename"):
        read_container(strange, "test-kind", 2)


@pytest.mark.parametrize(
    "header",
    [
        b'{"__metadata__":{"kind":"other","kind":"test-kind","version":"1"}}',
        b'{"__metadata__":{"kind":"test-kind","version":"1"},'
        b'"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F16","shape":[0],"data_offsets":[0,0]}}',
    ],
)
def test_a_name_that_stands_twice_is_refused(path: Path, header: bytes) -> None:
    raw(path, header)
    refused(path, "names '(kind|a)' twice, and only one can be meant")


def test_a_mapped_file_gives_what_was_written_whole_numbers_too_and_refuses_what_is_cut(path: Path) -> None:
    stacks = {**TENSORS, "bytes": torch.arange(6, dtype=torch.uint8).reshape(2, 3), "rows": torch.tensor([-1, 2**40])}
    write_container(path, "test-kind", 2, {"note": "1"}, stacks, ("bytes", "rows"))
    metadata, mapped = open_mapped(path, "test-kind", 2)
    assert metadata["note"] == "1" and set(mapped) == set(stacks)
    for name, tensor in stacks.items():
        assert mapped[name].dtype == tensor.dtype and torch.equal(mapped[name], tensor)
    with pytest.raises(FileFormatError, match="holds 'test-kind', but 'other' is expected"):
        open_mapped(path, "other", 2)
    with pytest.raises(FileFormatError, match="has format version 2, but this release reads up to 1"):
        open_mapped(path, "test-kind", 1)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FileFormatError, match="is not a readable safetensors file"):
        open_mapped(path, "test-kind", 2)


def test_only_the_tensors_that_are_named_may_be_whole_numbers(path: Path) -> None:
    whole = {"a": torch.ones(2, dtype=torch.uint8), "b": torch.ones(2, dtype=torch.uint8)}
    with pytest.raises(OutputError, match=r"tensor 'b' holds torch.uint8 numbers"):
        write_tensors(path, {}, whole, ("a",))
    assert not path.exists()
