"""The predictor's objective: the base's own loss under what is predicted, and what is added to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperdream_core.identity import Identity
from hyperdream_core.models.hypernetwork import Hypernetwork, HypernetworkConfig, weight_supervision
from hyperdream_core.ops.lidb import LidbCoefficients, expand
from hyperdream_core.ops.lowrank import delta
from hyperdream_core.pipelines.training.train_hypernetwork import (
    HypernetworkBatch,
    HypernetworkObjective,
    expand_batch,
    layer_bases,
)

SUBJECTS, PICTURES = 2, 3


@pytest.fixture(scope="module")
def network() -> Hypernetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = {"kind": "conv", "channels": [8, 8, 8, 8], "blocks": [1, 1, 1], "width": 6, "image_size": 32}
        return Hypernetwork(
            HypernetworkConfig(
                family="miniature", down_dim=5, up_dim=7, width=12, heads=3, decoder_layers=1, image_encoder=encoder
            )
        )


@pytest.fixture(scope="module")
def batch(network: Hypernetwork, base: Any) -> HypernetworkBatch:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        features = network.encode(torch.rand(SUBJECTS, 3, 32, 32, generator=generator))
        text = base.encode_prompt(["a sks face, smiling"] * SUBJECTS * PICTURES)
    latents = torch.randn(SUBJECTS * PICTURES, base.family.latent_channels, 4, 4, generator=generator)
    return HypernetworkBatch(features, latents, text)


def loss(objective: HypernetworkObjective, batch: HypernetworkBatch, seed: int = 5) -> Tensor:
    value: Tensor = objective(batch, torch.Generator().manual_seed(seed))
    return value


def test_a_subjects_pictures_share_its_coefficients(network: Hypernetwork, batch: HypernetworkBatch) -> None:
    coefficients, bases = network(batch.features), layer_bases(network)
    pairs = expand_batch(coefficients, bases, PICTURES)
    name = network.layer_names[3]
    for sample in range(SUBJECTS * PICTURES):
        row = sample // PICTURES
        alone = LidbCoefficients(coefficients[name].down[row], coefficients[name].up[row])
        got = delta(pairs[name])[sample]
        torch.testing.assert_close(got, delta(expand(alone, bases[name])), atol=1e-6, rtol=1e-5)


def test_the_penalty_and_the_supervision_are_added_at_their_weights(
    network: Hypernetwork, base: Any, batch: HypernetworkBatch, fresh_identity: Callable[..., Identity]
) -> None:
    plain = loss(HypernetworkObjective(network, base, penalty=0.0), batch)
    # The objective draws the number of passes first, so the same seed predicts the same coefficients.
    passes = int(torch.randint(1, network.config.refine_steps + 1, (1,), generator=torch.Generator().manual_seed(5)))
    coefficients = network(batch.features, passes)
    penalised = loss(HypernetworkObjective(network, base, penalty=2.0), batch)
    torch.testing.assert_close(penalised - plain, 2.0 * network.output_penalty(coefficients), atol=1e-5, rtol=1e-3)

    targets = {
        name: LidbCoefficients(torch.ones_like(layer.down), torch.ones_like(layer.up))
        for name, layer in coefficients.items()
    }
    supervised = HypernetworkBatch(batch.features, batch.latents, batch.text, targets)
    objective = HypernetworkObjective(network, base, penalty=0.0, supervision=0.5)
    expected = 0.5 * weight_supervision(coefficients, targets)
    torch.testing.assert_close(loss(objective, supervised) - plain, expected, atol=1e-5, rtol=1e-3)
    assert torch.equal(loss(objective, batch), plain), "without targets there is nothing to supervise with"


def test_only_the_decoder_learns(network: Hypernetwork, base: Any, batch: HypernetworkBatch) -> None:
    objective = HypernetworkObjective(network, base)
    assert {id(p) for p in objective.parameters()} == {id(p) for p in network.parameters()}
    loss(objective, batch).backward()
    try:
        assert all(parameter.grad is None for parameter in network.encoder.parameters())
        assert all(parameter.grad is None for module in base.modules() for parameter in module.parameters())
        reached = [float(p.grad.abs().max()) for p in network.decoder.parameters() if p.grad is not None]
        assert reached and max(reached) > 0
    finally:
        network.zero_grad()


def test_a_few_steps_lower_the_loss(network: Hypernetwork, base: Any, batch: HypernetworkBatch) -> None:
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    objective = HypernetworkObjective(network, base, penalty=0.0)
    optimizer = torch.optim.Adam(network.parameters_to_train(), lr=1e-2)
    try:
        before = float(loss(objective, batch).detach())
        for _ in range(8):
            loss(objective, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert float(loss(objective, batch).detach()) < before
    finally:
        network.load_state_dict(state)
