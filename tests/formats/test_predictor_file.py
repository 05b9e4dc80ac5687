from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hyperdream_core.errors import FileFormatError, OutputError
from hyperdream_core.formats.container import read_tensors, write_container, write_tensors
from hyperdream_core.formats.predictor_file import (
    KIND,
    NEWEST_VERSION,
    HypernetworkFile,
    read_hypernetwork,
    write_hypernetwork,
)

CONFIG = {"family": "miniature", "target_set": "attention", "width": 12}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "predictor.safetensors"
    tensors = {"a.weight": torch.randn(3, 5), "b": torch.randn(7)}
    write_hypernetwork(
        path, HypernetworkFile(config=CONFIG, tensors=tensors, base_fingerprint="f00d", training={"steps": 12})
    )
    return path


def rewrite(path: Path, **changes: str) -> None:
    metadata, tensors = read_tensors(path)
    write_tensors(path, {**metadata, **changes}, tensors)


def test_a_file_gives_back_what_was_written_bit_for_bit(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.randn(3, 5), "b": torch.randn(7).bfloat16()}
    path = tmp_path / "predictor.safetensors"
    write_hypernetwork(path, HypernetworkFile(config=CONFIG, tensors=tensors, training={"seconds": 1.5}))
    found = read_hypernetwork(path)
    assert (dict(found.config), dict(found.training), found.base_fingerprint) == (CONFIG, {"seconds": 1.5}, "")
    assert set(found.tensors) == set(tensors)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors.items())


def test_half_precision_halves_the_file(tmp_path: Path, written: Path) -> None:
    contents = read_hypernetwork(written)
    write_hypernetwork(tmp_path / "half.safetensors", contents, torch.float16)
    found = read_hypernetwork(tmp_path / "half.safetensors")
    assert all(torch.equal(found.tensors[name], contents.tensors[name].half()) for name in contents.tensors)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "hyperdream-identity"}, "holds 'hyperdream-identity'"),
        ({"version": str(NEWEST_VERSION + 1)}, "Update HyperDream"),
        ({"config": "{"}, "no readable 'config'"),
        ({"config": "[" * 100_000}, "no readable 'config'"),
        ({"config": "[1]"}, "not an object but a list"),
        ({"training": ""}, "no readable 'training'"),
        ({"config": json.dumps({**CONFIG, "family": "sd9"})}, "does not know .*sd9"),
        ({"config": json.dumps({**CONFIG, "family": ["sd15"]})}, "does not know"),
        ({"config": json.dumps({**CONFIG, "target_set": "all"})}, "does not know .*'all'"),
        ({"config": json.dumps({**CONFIG, "family": "sd15"})}, "has layers_digest"),
        ({"basis_recipe": "other/1"}, "has basis_recipe 'other/1'"),
    ],
)
def test_foreign_newer_and_altered_files_are_refused(written: Path, changes: dict[str, str], words: str) -> None:
    rewrite(written, **changes)
    with pytest.raises(FileFormatError, match=words):
        read_hypernetwork(written)


def test_a_truncated_file_is_refused(written: Path) -> None:
    written.write_bytes(written.read_bytes()[:-5])
    with pytest.raises(FileFormatError, match=r"predictor\.safetensors: is not a readable safetensors file"):
        read_hypernetwork(written)


def test_numbers_that_are_not_finite_are_neither_read_nor_written(written: Path) -> None:
    contents = HypernetworkFile(config=CONFIG, tensors={"a": torch.tensor([float("nan")])})
    before = written.read_bytes()
    with pytest.raises(OutputError, match="tensor 'a' holds NaN"):
        write_hypernetwork(written, contents)
    assert written.read_bytes() == before
    raw = before.replace(contents_bytes(written), torch.full((7,), float("inf")).numpy().tobytes())
    written.write_bytes(raw)
    with pytest.raises(FileFormatError, match="NaN or infinite"):
        read_hypernetwork(written)


def contents_bytes(path: Path) -> bytes:
    return read_tensors(path)[1]["b"].numpy().tobytes()


def test_metadata_that_is_missing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bare.safetensors"
    write_container(path, KIND, NEWEST_VERSION, {}, {"a": torch.ones(2)})
    with pytest.raises(FileFormatError, match="no readable 'config'"):
        read_hypernetwork(path)
