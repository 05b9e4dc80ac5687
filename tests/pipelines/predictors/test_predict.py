from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyperdream_core.errors import ConfigError, ReferenceImageError
from hyperdream_core.models.hypernetwork import Hypernetwork, HypernetworkConfig
from hyperdream_core.ops import lidb
from hyperdream_core.pipelines.predictors.predict import PredictConfig, predict_identity


@pytest.fixture(scope="module")
def hypernetwork() -> Hypernetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = {"kind": "conv", "channels": [8, 8, 8, 8], "width": 16, "image_size": 32}
        return Hypernetwork(HypernetworkConfig(family="miniature", width=16, heads=2, rank=1, image_encoder=encoder))


def test_one_picture_gives_what_the_network_says(hypernetwork: Hypernetwork, references: Tensor) -> None:
    config = PredictConfig(refine_steps=2, identifier="xyz", class_noun="pet")
    identity = predict_identity(hypernetwork, references[:1], config)
    with torch.no_grad():
        expected = hypernetwork.train(False)(references[:1], 2)
    for name, coefficients in expected.items():
        assert torch.equal(identity.coefficients[name].up, coefficients.up[0])
        assert torch.equal(identity.coefficients[name].down, coefficients.down[0])
    assert (identity.identifier, identity.class_noun, identity.rank) == ("xyz", "pet", 1)
    assert identity.made_by["refine_steps"] == "2" and identity.made_by["references"] == "1"


def test_several_pictures_give_the_predictors_rank_and_depend_on_each(
    hypernetwork: Hypernetwork, references: Tensor
) -> None:
    both = predict_identity(hypernetwork, references)
    assert both.rank == 1
    first = predict_identity(hypernetwork, references[:1])
    weighted = predict_identity(hypernetwork, references, weights=[1.0, 0.0])
    for name, coefficients in first.coefficients.items():
        size = lidb.core_distance(coefficients, lidb.scale(coefficients, 0.0))
        assert lidb.core_distance(weighted.coefficients[name], coefficients) < 1e-8 * size
        assert lidb.core_distance(both.coefficients[name], coefficients) > 1e-8 * size


def test_the_networks_mode_is_restored(hypernetwork: Hypernetwork, references: Tensor) -> None:
    hypernetwork.train(True)
    predict_identity(hypernetwork, references)
    assert hypernetwork.training and hypernetwork.decoder.training


def test_what_cannot_be_predicted_from_is_refused(hypernetwork: Hypernetwork, references: Tensor) -> None:
    with pytest.raises(ReferenceImageError, match="give at least one picture"):
        predict_identity(hypernetwork, references[:0])
    with pytest.raises(ConfigError, match="3 weights for 2 references"):
        predict_identity(hypernetwork, references, weights=[1.0, 1.0, 1.0])
    with pytest.raises(ConfigError, match="refine_steps must be 0 or more, got -1"):
        PredictConfig(refine_steps=-1)
