"""The algebra of pairs, coefficients and identities holds for whatever sizes, ranks and strengths come."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyperdream_core.identity import Identity, averaged, blended, truncated
from hyperdream_core.ops import lidb, lowrank
from hyperdream_core.ops.lidb import LidbCoefficients
from hyperdream_core.ops.lowrank import LoraPair
from tests.identities import make_identity

# Float64 inside, so that what is left is the algebra and not the rounding.
CLOSE = {"atol": 1e-9, "rtol": 1e-7}

sizes = st.integers(1, 9)
ranks = st.integers(1, 5)
seeds = st.integers(0, 2**20)
strengths = st.floats(-3, 3, allow_nan=False)


def random_pair(rank: int, inputs: int, outputs: int, seed: int) -> LoraPair:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, inputs, generator=generator, dtype=torch.float64)
    return LoraPair(down, torch.randn(outputs, rank, generator=generator, dtype=torch.float64))


@given(ranks, ranks, sizes, sizes, seeds)
def test_the_change_of_pairs_side_by_side_is_the_sum(first: int, second: int, i: int, o: int, seed: int) -> None:
    one, other = random_pair(first, i, o, seed), random_pair(second, i, o, seed + 1)
    together = lowrank.concatenate([one, other])
    assert together.rank == first + second
    torch.testing.assert_close(lowrank.delta(together), lowrank.delta(one) + lowrank.delta(other), **CLOSE)


@given(ranks, sizes, sizes, seeds, strengths)
def test_strength_scales_the_change(rank: int, i: int, o: int, seed: int, strength: float) -> None:
    pair = random_pair(rank, i, o, seed)
    torch.testing.assert_close(lowrank.delta(lowrank.scale(pair, strength)), strength * lowrank.delta(pair), **CLOSE)


@given(ranks, sizes, sizes, seeds)
def test_the_canonical_pair_is_the_same_change_and_its_own_canonical_form(rank: int, i: int, o: int, seed: int) -> None:
    pair = random_pair(rank, i, o, seed)
    canonical = lowrank.canonicalize(pair)
    assert canonical.rank == (rank if rank == 1 else min(rank, i, o))
    torch.testing.assert_close(lowrank.delta(canonical), lowrank.delta(pair), **CLOSE)
    gram = canonical.down @ canonical.down.T
    torch.testing.assert_close(gram, torch.eye(canonical.rank, dtype=torch.float64), **CLOSE)
    again = lowrank.canonicalize(canonical)
    torch.testing.assert_close(again.down, canonical.down, **CLOSE)
    torch.testing.assert_close(again.up, canonical.up, **CLOSE)


@given(ranks, sizes, sizes, seeds, st.floats(0.1, 10))
def test_the_freedom_between_the_factors_leaves_the_canonical_pair_alone(
    rank: int, i: int, o: int, seed: int, factor: float
) -> None:
    pair = random_pair(rank, i, o, seed)
    other = LoraPair(pair.down * factor, pair.up / factor)
    torch.testing.assert_close(lowrank.canonicalize(other).up, lowrank.canonicalize(pair).up, **CLOSE)


@given(ranks, st.integers(5, 9), st.integers(6, 12), seeds)
def test_distance_and_form_in_the_basis_are_those_of_the_whole_change(rank: int, i: int, o: int, seed: int) -> None:
    basis = lidb.auxiliary_basis("a family", f"layer {seed}", i, o, 4, 5, torch.float64)
    first, second = (_coefficients(rank, basis, seed + k) for k in (0, 1))
    whole = lowrank.delta(lidb.expand(first, basis)) - lowrank.delta(lidb.expand(second, basis))
    got = lidb.core_distance(first, second).double()
    # `core_distance` sums in float32.
    torch.testing.assert_close(got, whole.square().sum(), atol=1e-4, rtol=1e-5)
    form = lidb.expand(lidb.canonicalize(first), basis)
    torch.testing.assert_close(lowrank.delta(form), lowrank.delta(lidb.expand(first, basis)), **CLOSE)


@settings(max_examples=20)
@given(st.integers(1, 3), strengths, strengths)
def test_identities_add_and_scale_as_their_changes_do(rank: int, one: float, other: float) -> None:
    identity = make_identity("miniature", rank=rank, scale=0.1)
    total = identity.scaled(one).concatenated(identity.scaled(other))
    assert total.rank == 2 * rank
    torch.testing.assert_close(_change(total), (one + other) * _change(identity), atol=1e-5, rtol=1e-4)


@settings(max_examples=20)
@given(st.floats(0, 1))
def test_a_blend_lies_on_the_way_between_two(share: float) -> None:
    first = make_identity("miniature", rank=2, scale=0.1)
    second = first.scaled(-2.0)
    expected = (1 - share) * _change(first) + share * _change(second)
    torch.testing.assert_close(_change(blended(first, second, share)), expected, atol=1e-5, rtol=1e-4)


@settings(max_examples=20)
@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=4))
def test_the_mean_of_one_person_is_that_person_whatever_the_weights(weights: list[float]) -> None:
    identity = make_identity("miniature", rank=1, scale=0.1)
    mean = averaged([identity] * len(weights), weights)
    torch.testing.assert_close(_change(mean), _change(identity), atol=1e-5, rtol=1e-4)


@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(1, 4))
def test_truncation_never_comes_nearer_with_less_rank(rank: int, kept: int) -> None:
    identity = make_identity("miniature", rank=rank, scale=0.1)
    left = float((_change(identity) - _change(truncated(identity, kept))).norm())
    if kept >= rank:
        assert left == 0
    else:
        more = float((_change(identity) - _change(truncated(identity, kept + 1))).norm())
        assert more <= left + 1e-6


def _coefficients(rank: int, basis: lidb.AuxiliaryBasis, seed: int) -> LidbCoefficients:
    pair = random_pair(rank, basis.down.shape[0], basis.up.shape[1], seed)
    return LidbCoefficients(pair.down, pair.up)


def _change(identity: Identity) -> Tensor:
    """The change of one layer, which stands for all."""
    name = identity.layers[0].name
    return lowrank.delta(identity.expand()[name])
