from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hyperdream_core.errors import ConfigError, FileFormatError
from hyperdream_core.faces.prepared_faces import faces_of_crops
from hyperdream_core.formats.container import read_tensors, write_container, write_tensors
from hyperdream_core.models.hypernetwork import Hypernetwork, HypernetworkConfig
from hyperdream_core.pipelines.predictors.hypernetwork_predictor import (
    HypernetworkPredictor,
    read_hypernetwork_predictor,
    save_hypernetwork,
)
from hyperdream_core.pipelines.predictors.predict import predict_identity
from hyperdream_core.pipelines.predictors.predictor import open_predictor

CONV = {"kind": "conv", "channels": [8, 8, 8, 8], "blocks": [1, 1, 1], "width": 6, "image_size": 32}
VIT = {
    "kind": "vit",
    "model_type": "clip_vision_model",
    "model": {"hidden_size": 6, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 16, "patch_size": 8},
}  # fmt: skip


def tiny(image_encoder: dict[str, object]) -> Hypernetwork:
    torch.random.manual_seed(0)
    config = HypernetworkConfig(
        family="miniature", down_dim=5, up_dim=7, width=12, heads=3, decoder_layers=1, image_encoder=image_encoder
    )
    return Hypernetwork(config).train(False)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_hypernetwork(tmp_path / "predictor.safetensors", tiny(CONV))
    return tmp_path / "predictor.safetensors"


@pytest.mark.parametrize("encoder", [CONV, VIT], ids=["conv", "vit"])
def test_a_loaded_network_is_the_saved_one_bit_for_bit(tmp_path: Path, encoder: dict[str, object]) -> None:
    if encoder["kind"] == "vit":
        pytest.importorskip("transformers")
    path, network = tmp_path / "predictor.safetensors", tiny(encoder)
    save_hypernetwork(path, network, base_fingerprint="f00d", training={"steps": 12})
    found = read_hypernetwork_predictor(path)
    assert found.network.config == network.config
    assert (found.fingerprint, dict(found.training)) == ("f00d", {"steps": 12})
    state = network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.network.state_dict().items())
    images = torch.rand(2, 3, 32, 32)
    for before, after in zip(network(images).values(), found.network(images).values(), strict=True):
        assert torch.equal(before.up, after.up)
        assert torch.equal(before.down, after.down)


def test_a_loaded_network_is_ready_to_predict(saved: Path) -> None:
    network = read_hypernetwork_predictor(saved, dtype=torch.bfloat16).network
    assert not network.training
    layer = next(iter(network(torch.rand(1, 3, 32, 32).bfloat16()).values()))
    assert layer.up.dtype == torch.bfloat16


def test_a_half_precision_file_predicts_nearly_the_same(tmp_path: Path, saved: Path) -> None:
    network, path = read_hypernetwork_predictor(saved).network, tmp_path / "half.safetensors"
    save_hypernetwork(path, network, dtype=torch.float16)
    assert path.stat().st_size < 0.7 * saved.stat().st_size
    images = torch.rand(1, 3, 32, 32)
    for whole, half in zip(
        network(images).values(), read_hypernetwork_predictor(path).network(images).values(), strict=True
    ):
        torch.testing.assert_close(half.up, whole.up, rtol=0.02, atol=1e-4)  # float16 keeps three digits


def test_tensors_other_than_the_configurations_are_refused(saved: Path) -> None:
    metadata, tensors = read_tensors(saved)
    name = "decoder.embedding"
    for changed, words in (
        ({key: tensor for key, tensor in tensors.items() if key != name}, f"lacks tensor '{name}'"),
        ({**tensors, "extra": torch.ones(1)}, "has an unknown tensor 'extra'"),
        ({**tensors, name: tensors[name][:, :-1]}, rf"tensor '{name}' has the shape \(80, 11\), .* needs \(80, 12\)"),
    ):
        write_tensors(saved, metadata, changed)
        with pytest.raises(FileFormatError, match=words):
            read_hypernetwork_predictor(saved)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 12_000}, "but its configuration needs"),  # refused before any memory is taken
        ({"width": 12_000_000}, "width must be 16384 or less"),
        ({"decoder_layers": 10**9}, "decoder_layers must be 64 or less"),
        ({"image_encoder": {"kind": "conv", "blocks": [1, 10**9, 1]}}, r"blocks must be whole numbers in 1\.\.64"),
        ({"image_encoder": {"kind": "conv", "channels": [8, 8, 8, True]}}, "channels must be whole numbers"),
        ({"image_encoder": {"kind": "vit", "model_type": "llama"}}, "unknown type of vision transformer 'llama'"),
        ({"image_encoder": {"kind": "vit", "model_type": "vit", "model": {"num_hidden_layers": 10**9}}}, "64 or less"),
        ({"image_encoder": {"kind": "vit", "model_type": "vit", "model": {"patch_size": 0}}}, "describes no network"),
        ({"image_encoder": {"kind": "vit", "model_type": "vit", "model": {"hidden_act": "x"}}}, "describes no network"),
        ({"image_encoder": {"kind": "vit", "model_type": "vit", "model": {"num_channels": 4}}}, "describes no network"),
        ({"image_encoder": {"kind": "vit", "model_type": "vit", "std": [0, 1, 1]}}, "std must be 3 numbers"),
        ({"rank": 10**9}, "rank must be 128 or less"),
        ({"depth": 3}, "no setting 'depth'"),
        ({"image_encoder": {"kind": "conv", "channels": "wide"}}, "describes no network"),
        ({"image_encoder": {"kind": "conv", "channels": [8, 8, 8, None]}}, "describes no network"),
        ({"image_encoder": {"kind": "conv", "channels": [8, 8, 8, -8]}}, "describes no network"),
        ({"image_encoder": {"kind": "conv", "channels": [8, 8, 8, 9]}}, "describes no network"),
    ],
)
def test_a_configuration_that_makes_no_network_is_refused(saved: Path, changes: dict[str, object], words: str) -> None:
    metadata, tensors = read_tensors(saved)
    metadata["config"] = json.dumps({**json.loads(metadata["config"]), **changes})
    write_tensors(saved, metadata, tensors)
    with pytest.raises(FileFormatError, match=words):
        read_hypernetwork_predictor(saved)


def test_a_predictor_is_opened_by_its_kind_of_file(saved: Path, tmp_path: Path) -> None:
    predictor = open_predictor(saved)
    assert isinstance(predictor, HypernetworkPredictor)
    assert (predictor.family, predictor.wants.size, predictor.wants.candidates) == ("miniature", 64, False)
    assert open_predictor("miniature").family == "miniature"
    write_container(tmp_path / "other.safetensors", "somebody's", 1, {}, {"x": torch.zeros(1)})
    with pytest.raises(FileFormatError, match='holds "somebody\'s", but a predictor'):
        open_predictor(tmp_path / "other.safetensors")


def test_a_predictor_sees_the_faces_at_its_own_size_and_by_their_quality(saved: Path) -> None:
    predictor = open_predictor(saved)
    crops = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    faces = faces_of_crops(crops)
    faces = replace(faces, prepared=replace(faces.prepared, weights=(1.0, 0.3)))
    (identity,) = predictor.predict(faces, seed=5)
    expected = predict_identity(predictor.network, faces.at(64), weights=(1.0, 0.3))  # type: ignore[arg-type]
    for name, coefficients in expected.coefficients.items():
        assert torch.equal(identity.coefficients[name].up, coefficients.up)
    with pytest.raises(ConfigError, match="a hypernetwork has one answer, got candidates 3"):
        predictor.predict(faces, candidates=3)
