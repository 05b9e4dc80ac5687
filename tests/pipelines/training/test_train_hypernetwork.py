"""The predictor's objective: the base's own loss under what is predicted, and what is added to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperdream_core.identity import Identity
from hyperdream_core.models.hypernetwork import Hypernetwork, HypernetworkConfig, weight_supervision
from hyperdream_core.models.image_encoder import ImageFeatures
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


@pytest.mark.parametrize(
    ("begins", "weights"), [(0.5, [1, 1, 1, 0.5, 0]), (0.0, [1, 0.75, 0.5, 0.25, 0]), (1.0, [1, 1, 1, 1, 1])]
)
def test_the_supervisions_weight_falls_to_nothing_at_the_end(
    network: Hypernetwork, base: Any, begins: float, weights: list[float]
) -> None:
    objective = HypernetworkObjective(network, base, supervision=0.2, supervision_from=begins)
    assert objective.supervision_now == pytest.approx(0.2)
    for step, weight in enumerate(weights):
        objective.at(step, 4)
        assert objective.supervision_now == pytest.approx(0.2 * weight), step


def test_what_the_batch_says_is_not_drawn_again(network: Hypernetwork, base: Any, batch: HypernetworkBatch) -> None:
    level, noise = torch.linspace(0.2, 0.9, 6), torch.randn(batch.latents.shape)
    said = replace(batch, level=level, noise=noise, passes=2, text=["a sks face, smiling"] * 6)
    objective = HypernetworkObjective(network, base, penalty=0.0)
    assert torch.equal(loss(objective, said, 1), loss(objective, said, 2))
    # The mean over rows: of two parts of the batch, weighted by their subjects.
    parts = [
        HypernetworkBatch(
            ImageFeatures(batch.features.tokens[one : one + 1], batch.features.pooled[one : one + 1]),
            *(x[3 * one : 3 * one + 3] for x in (batch.latents, said.text)), None,
            *(x[3 * one : 3 * one + 3] for x in (level, noise)), 2,
        )
        for one in range(SUBJECTS)
    ]  # fmt: skip
    mean = torch.stack([loss(objective, part) for part in parts]).mean()
    torch.testing.assert_close(mean, loss(objective, said), atol=1e-6, rtol=1e-5)


def test_computing_twice_gives_the_same_gradient(network: Hypernetwork, base: Any, batch: HypernetworkBatch) -> None:
    def gradient(recompute: bool) -> list[Tensor]:
        objective = HypernetworkObjective(network, base, recompute=recompute)
        with objective.held():
            loss(objective, batch).backward()
        found = [p.grad.clone() for p in network.decoder.parameters() if p.grad is not None]
        network.zero_grad()
        return found

    kept, twice = gradient(False), gradient(True)
    assert kept and max(float(one.abs().max()) for one in kept) > 0
    for one, other in zip(kept, twice, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-4)


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
