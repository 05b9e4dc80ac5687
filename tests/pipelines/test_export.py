from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hyperdream_core.errors import ConfigError
from hyperdream_core.formats.container import read_tensors
from hyperdream_core.formats.lora_file import read_lora
from hyperdream_core.identity import Identity
from hyperdream_core.ops.lowrank import delta
from hyperdream_core.pipelines.export import ExportConfig, export_lora


@pytest.mark.parametrize("dialect", ["kohya", "diffusers"])
def test_the_export_is_the_identity(fresh_identity: Callable[..., Identity], tmp_path: Path, dialect: str) -> None:
    identity = fresh_identity("miniature", rank=2, scale=0.5)
    config = ExportConfig(dialect=dialect, dtype="fp32", strength=0.5, license="CC0")  # type: ignore[arg-type]
    path = export_lora(identity, tmp_path / "sofia.safetensors", config)
    family, pairs = read_lora(path)
    expected = identity.expand()
    assert family == "miniature" and pairs.keys() == expected.keys()
    for name, pair in pairs.items():
        torch.testing.assert_close(delta(pair), 0.5 * delta(expected[name]))
    metadata, _ = read_tensors(path)
    assert metadata["modelspec.title"] == "sofia" and metadata["modelspec.license"] == "CC0"


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ConfigError, match="dtype must be one of fp16, bf16, fp32, got 'int8'"):
        ExportConfig(dtype="int8")  # type: ignore[arg-type]


def test_an_identity_over_noise_bands_is_not_exported_as_a_lora(
    fresh_identity: Callable[..., Identity], tmp_path: Path
) -> None:
    one = fresh_identity("miniature")
    entries = {f"{name}.band{k}": c for k in (0, 1) for name, c in one.coefficients.items()}
    banded = replace(one, bands=((0.0, 0.5), (0.5, 1.0)), coefficients=entries)
    with pytest.raises(ConfigError, match=r"bands \[0, 0.5\) and \[0.5, 1\), .* nor exported as a LoRA .* Draw"):
        export_lora(banded, tmp_path / "sofia.safetensors")
    assert not list(tmp_path.iterdir())
