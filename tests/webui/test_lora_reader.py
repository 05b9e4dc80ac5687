"""`<lora:...>` on identity files: the same numbers as the exported LoRA, registered once, in both kinds of host."""

from __future__ import annotations

import sys
from collections import namedtuple
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hyperdream_webui import lora_reader as native_lora
from safetensors.torch import load_file, save_file

from hyperdream_core.errors import ConfigError
from hyperdream_core.formats.identity_file import read_identity, write_identity
from hyperdream_core.pipelines.export import export_lora

from .conftest import Networks, make_identity

Weights = namedtuple("Weights", ["network_key", "sd_key", "w", "sd_module"])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An identity, and the LoRA exported from it."""
    folder = tmp_path_factory.mktemp("lora")
    write_identity(folder / "mara.safetensors", make_identity("miniature"))
    return folder / "mara.safetensors", export_lora(
        read_identity(folder / "mara.safetensors"), folder / "mara-lora.safetensors"
    )


def layers_of(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """A file's tensors by layer, split at the first dot as the host does."""
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(path).items():
        layer, _, part = key.partition(".")
        layers.setdefault(layer, {})[part] = tensor
    return layers


def test_each_layer_is_the_exported_one(networks: Networks, files: tuple[Path, Path]) -> None:
    assert native_lora.register() == "module type"
    kind, net = networks.module_types[-1], SimpleNamespace(network_on_disk=SimpleNamespace(filename=str(files[0])))
    exported = layers_of(files[1])
    for layer, parts in layers_of(files[0]).items():
        made = kind.create_module(net, Weights(f"{layer}.lidb_down", "", parts, None))
        assert set(made) == set(exported[layer])
        assert all(torch.equal(made[part], exported[layer][part]) for part in made)


def test_other_files_are_left_to_the_host(networks: Networks, files: tuple[Path, Path]) -> None:
    native_lora.register()
    for parts in ({"lora_up.weight": 1, "lora_down.weight": 1}, {"lidb_down": 1}, {"hada_w1_a": 1}):
        assert networks.module_types[-1].create_module(None, Weights("layer.x", "", parts, None)) is None


def test_registering_again_after_a_reload_adds_nothing(networks: Networks) -> None:
    for _ in range(3):
        native_lora.register()
    assert [type(kind).__name__ for kind in networks.module_types] == ["ModuleTypeLora", "ModuleTypeIdentity"]


@pytest.fixture
def forge_networks(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = ModuleType("networks")
    module.load_lora_state_dict = lru_cache(maxsize=5)(load_file)
    monkeypatch.setitem(sys.modules, "networks", module)
    return module


def test_forge_reads_an_identity_as_its_export(forge_networks: Any, files: tuple[Path, Path]) -> None:
    assert native_lora.register() == native_lora.register() == "state dict"
    read, exported = forge_networks.load_lora_state_dict(str(files[0])), load_file(files[1])
    assert set(read) == set(exported) and all(torch.equal(read[key], exported[key]) for key in read)
    assert forge_networks.load_lora_state_dict(str(files[0])) is read
    forge_networks.load_lora_state_dict.cache_clear()
    assert forge_networks.load_lora_state_dict(str(files[0])) is not read


def test_forge_reads_other_files_as_before(forge_networks: Any, files: tuple[Path, Path], tmp_path: Path) -> None:
    native_lora.register()
    save_file({"one": torch.ones(2)}, tmp_path / "plain.safetensors")
    assert set(forge_networks.load_lora_state_dict(str(tmp_path / "plain.safetensors"))) == {"one"}
    assert set(forge_networks.load_lora_state_dict(str(files[1]))) == set(load_file(files[1]))


def test_a_file_changed_under_its_name_is_read_again(networks: Networks, tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    write_identity(path, make_identity("miniature", seed=1))
    first = native_lora.expanded(str(path))
    write_identity(path, make_identity("miniature", seed=2))
    second = native_lora.expanded(str(path))
    layer = next(iter(first))
    assert not torch.equal(first[layer]["lora_up.weight"], second[layer]["lora_up.weight"])


def test_without_the_lora_extension_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "networks", raising=False)
    assert native_lora.register() == ""


def test_an_identity_over_noise_bands_is_refused_with_a_remedy_in_both_hosts(
    networks: Networks, forge_networks: Any, tmp_path: Path
) -> None:
    one, path = make_identity("miniature"), tmp_path / "mara.safetensors"
    entries = {f"{name}.band{k}": c for k in (0, 1) for name, c in one.coefficients.items()}
    write_identity(path, replace(one, bands=((0.0, 0.5), (0.5, 1.0)), coefficients=entries))
    words = r"noise bands \[0, 0.5\) and \[0.5, 1\).* Draw with it live: .* HyperDream guidance in Automatic1111"
    native_lora.register()
    with pytest.raises(ConfigError, match=words):
        forge_networks.load_lora_state_dict(str(path))
    sys.modules["networks"] = networks
    native_lora.register()
    net = SimpleNamespace(network_on_disk=SimpleNamespace(filename=str(path)))
    layer, parts = next(iter(layers_of(path).items()))
    with pytest.raises(ConfigError, match=words):
        networks.module_types[-1].create_module(net, Weights(f"{layer}.band0.lidb_down", "", parts, None))
