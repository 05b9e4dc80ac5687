from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from hyperdream_core.ops import lidb, lowrank
from hyperdream_core.ops.lidb import AuxiliaryBasis, LidbCoefficients


@dataclass(frozen=True)
class Linear:
    name: str
    in_features: int
    out_features: int


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def draw_coefficients(rank: int = 3, samples: tuple[int, ...] = (), seed: int = 0, p: int = 5) -> LidbCoefficients:
    return LidbCoefficients(down=draw(*samples, rank, p, seed=seed), up=draw(*samples, 7, rank, seed=seed + 1))


def odd_basis(layer: str = "a.b", dtype: torch.dtype = torch.float64) -> AuxiliaryBasis:
    return lidb.auxiliary_basis("test", layer, in_features=11, out_features=13, down_dim=5, up_dim=7, dtype=dtype)


def test_sizes_are_the_papers_clipped_to_the_layer() -> None:
    assert lidb.basis_sizes(320, 640) == (50, 100)
    assert lidb.basis_sizes(32, 640) == (32, 100)
    assert lidb.basis_sizes(64, 64) == (50, 64)


@pytest.mark.parametrize(("i", "o"), [(11, 13), (32, 32), (64, 320), (2048, 1280)])
def test_bases_are_orthonormal(i: int, o: int) -> None:
    basis = lidb.auxiliary_basis("test", "a", i, o, dtype=torch.float64)
    p, a = lidb.basis_sizes(i, o)
    assert basis.down.shape == (p, i)
    assert basis.up.shape == (o, a)
    torch.testing.assert_close(basis.down @ basis.down.T, torch.eye(p, dtype=torch.float64))
    torch.testing.assert_close(basis.up.T @ basis.up, torch.eye(a, dtype=torch.float64))


def test_float32_bases_are_the_rounded_float64_ones() -> None:
    assert torch.equal(odd_basis(dtype=torch.float32).up, odd_basis().up.float())


def test_layers_families_and_sides_have_unrelated_bases() -> None:
    one = lidb.auxiliary_basis("test", "a", 640, 640, 50, 50, torch.float64)
    others = [
        lidb.auxiliary_basis("test", "b", 640, 640, 50, 50, torch.float64).down,
        lidb.auxiliary_basis("other", "a", 640, 640, 50, 50, torch.float64).down,
        one.up.T,
    ]
    for other in others:
        # The share of one subspace that lies in another is p / i for independent draws; 10 % off is a sign of kinship.
        share = (one.down @ other.T).square().sum() / 50
        assert share.item() == pytest.approx(50 / 640, rel=0.1)


def test_the_basis_is_the_same_for_ever() -> None:
    # The draw itself, exact on every machine: 2 * RandomState(seed).random_sample() - 1.
    layers = [Linear("a.b", 11, 13), Linear("c", 320, 64)]
    assert lidb.basis_digest("test", layers, 5, 7) == GOLDEN_DIGEST
    basis = odd_basis()
    torch.testing.assert_close(basis.down[0], torch.tensor(GOLDEN_DOWN, dtype=torch.float64), rtol=0, atol=1e-8)
    torch.testing.assert_close(basis.up[:, 0], torch.tensor(GOLDEN_UP, dtype=torch.float64), rtol=0, atol=1e-8)


GOLDEN_DIGEST = "2c49190886f04fba0a9f993dec1154fe8283abbdb8a4c80487aaf8d6d21312ab"
GOLDEN_DOWN = [
    0.036786813, 0.011958175, -0.380415082, -0.352908725, 0.241192245, 0.295681212, 0.331024607,
    -0.530441756, -0.096910905, 0.093002304, 0.417918117,
]  # fmt: skip
GOLDEN_UP = [
    -0.060502121, -0.526061268, -0.139305726, 0.299946672, -0.176437082, -0.263137859, 0.225933021,
    0.156934123, 0.070810026, 0.251641919, 0.110835467, -0.165213830, 0.571193043,
]  # fmt: skip


def test_the_digest_tells_everything_apart_that_changes_a_basis() -> None:
    layers = [Linear("a", 60, 120), Linear("b", 120, 60)]
    digests = {
        lidb.basis_digest("test", layers),
        lidb.basis_digest("other", layers),
        lidb.basis_digest("test", layers[:1]),
        lidb.basis_digest("test", layers[::-1]),
        lidb.basis_digest("test", [Linear("c", 60, 120), layers[1]]),
        lidb.basis_digest("test", layers, 49, 100),
        lidb.basis_digest("test", layers, 50, 99),
    }
    assert len(digests) == 7


@pytest.mark.parametrize("samples", [(), (2,)])
def test_expanding_is_exact(samples: tuple[int, ...]) -> None:
    coefficients, basis = draw_coefficients(samples=samples), odd_basis()
    expected = basis.up @ coefficients.up @ coefficients.down @ basis.down
    torch.testing.assert_close(lowrank.delta(lidb.expand(coefficients, basis)), expected)


def test_expanding_half_precision_coefficients_multiplies_in_the_wider_one() -> None:
    coefficients, basis = draw_coefficients(), odd_basis(dtype=torch.float32)
    half = LidbCoefficients(coefficients.down.half(), coefficients.up.half())
    pair = lidb.expand(half, basis)
    assert pair.down.dtype == torch.float16
    assert torch.equal(pair.up, (basis.up @ half.up.float()).half())


def test_expanding_many_layers_equals_expanding_each_on_its_basis() -> None:
    layers = [Linear("a", 11, 13), Linear("b", 11, 7), Linear("c", 5, 13), Linear("d", 11, 13)]
    parts = {layer.name: draw_coefficients(seed=seed) for seed, layer in enumerate(layers)}
    pairs = lidb.expand_layers(parts, "test", layers, 5, 7, torch.float64)
    assert list(pairs) == ["a", "b", "c", "d"]
    for layer in layers:
        basis = lidb.auxiliary_basis("test", layer.name, layer.in_features, layer.out_features, 5, 7, torch.float64)
        expected = lidb.expand(parts[layer.name], basis)
        torch.testing.assert_close(pairs[layer.name].down, expected.down)
        torch.testing.assert_close(pairs[layer.name].up, expected.up)


def test_a_stacked_basis_is_the_layers_bases_in_parts() -> None:
    for side in ("down", "up"):
        size, columns = (11, 5) if side == "down" else (13, 7)
        shared, signs = lidb.stacked_basis("test", ["a", "b"], side, size, columns, torch.float64)
        for layer, layer_signs in zip(["a", "b"], signs, strict=True):
            basis = odd_basis(layer)
            assert torch.equal(shared * layer_signs, basis.down if side == "down" else basis.up.T)


def test_fresh_coefficients_change_nothing_but_learn() -> None:
    fresh = lidb.fresh_coefficients(5, 7, 3, torch.Generator().manual_seed(0))
    fresh = LidbCoefficients(fresh.down, fresh.up.requires_grad_())
    change = lowrank.delta(lidb.expand(fresh, odd_basis(dtype=torch.float32)))
    assert torch.equal(change, torch.zeros(13, 11))
    change.sum().backward()
    assert fresh.up.grad is not None
    assert fresh.up.grad.abs().min() > 0


def test_the_same_seed_starts_identities_from_the_same_place() -> None:
    first, second = (lidb.fresh_coefficients(5, 7, 2, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first.down, second.down)


def test_merging_scaling_and_the_canonical_form_act_on_the_whole_delta() -> None:
    one, two, basis = draw_coefficients(1), draw_coefficients(3, seed=5), odd_basis()

    def whole(coefficients: LidbCoefficients) -> Tensor:
        return lowrank.delta(lidb.expand(coefficients, basis))

    torch.testing.assert_close(whole(lidb.concatenate([one, two])), whole(one) + whole(two))
    torch.testing.assert_close(whole(lidb.scale(two, 0.25)), 0.25 * whole(two))
    torch.testing.assert_close(whole(lidb.canonicalize(two)), whole(two))


def test_the_core_distance_is_that_of_the_whole_deltas_and_blind_to_the_gauge() -> None:
    one, two, basis = draw_coefficients(2, (4,)), draw_coefficients(2, (4,), seed=5), odd_basis()
    difference = lowrank.delta(lidb.expand(one, basis)) - lowrank.delta(lidb.expand(two, basis))
    expected = difference.square().sum(dim=(1, 2)).float()
    torch.testing.assert_close(lidb.core_distance(one, two), expected)
    regauged = LidbCoefficients(one.down * -3, one.up / -3)
    torch.testing.assert_close(lidb.core_distance(one, regauged), torch.zeros(4), rtol=0, atol=1e-10)


def test_a_projected_lora_keeps_only_a_few_percent() -> None:
    # METHODS 1.1: (a / n)(b / m) = 4.9 % of the energy at 320 x 320, so there is no way back from a LoRA.
    basis = lidb.auxiliary_basis("test", "a", 320, 320, dtype=torch.float64)
    change = draw(320, 1) @ draw(1, 320, seed=1)
    kept = (basis.up.T @ change @ basis.down.T).square().sum() / change.square().sum()
    assert kept.item() == pytest.approx(100 / 320 * 50 / 320, rel=0.4)
