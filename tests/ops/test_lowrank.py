from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyperdream_core.ops.lowrank import LoraPair, canonicalize, concatenate, delta, scale


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def draw_pair(rank: int = 3, samples: tuple[int, ...] = (), seed: int = 0) -> LoraPair:
    return LoraPair(down=draw(*samples, rank, 5, seed=seed), up=draw(*samples, 7, rank, seed=seed + 1))


def test_the_delta_is_up_times_down() -> None:
    pair = LoraPair(down=torch.tensor([[1.0, 2.0, 3.0]]), up=torch.tensor([[10.0], [100.0]]))
    assert torch.equal(delta(pair), torch.tensor([[10.0, 20.0, 30.0], [100.0, 200.0, 300.0]]))


def test_a_batch_of_pairs_is_one_delta_per_sample() -> None:
    pair = draw_pair(samples=(2, 4))
    torch.testing.assert_close(delta(pair)[1, 3], pair.up[1, 3] @ pair.down[1, 3])


def test_scaling_scales_the_delta_per_sample_if_asked() -> None:
    pair, strengths = draw_pair(samples=(2,)), torch.tensor([0.5, -2.0], dtype=torch.float64)
    torch.testing.assert_close(delta(scale(pair, -0.3)), -0.3 * delta(pair))
    torch.testing.assert_close(delta(scale(pair, strengths)), strengths[:, None, None] * delta(pair))
    assert scale(pair, 0.5).down is pair.down


def test_concatenated_pairs_are_the_sum_of_their_deltas() -> None:
    pairs = [draw_pair(rank, seed=rank) for rank in (1, 3, 2)]
    total = concatenate(pairs)
    assert total.rank == 6
    torch.testing.assert_close(delta(total), sum(delta(pair) for pair in pairs))


@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize("samples", [(), (4,)])
def test_the_canonical_form_keeps_the_delta_and_has_orthonormal_rows(rank: int, samples: tuple[int, ...]) -> None:
    pair = draw_pair(rank, samples)
    form = canonicalize(pair)
    torch.testing.assert_close(delta(form), delta(pair))
    identity = torch.eye(min(rank, 5), dtype=torch.float64).expand(*samples, -1, -1)
    torch.testing.assert_close(form.down @ form.down.mT, identity)


@pytest.mark.parametrize("rank", [1, 3])
def test_pairs_with_the_same_delta_have_one_canonical_form(rank: int) -> None:
    pair, mix = draw_pair(rank), draw(rank, rank, seed=9)
    other = LoraPair(down=torch.linalg.inv(mix) @ pair.down, up=pair.up @ mix)
    for left, right in ((pair, other), (other, canonicalize(pair))):
        torch.testing.assert_close(canonicalize(left).down, canonicalize(right).down)
        torch.testing.assert_close(canonicalize(left).up, canonicalize(right).up)


def test_canonical_columns_of_up_are_the_singular_values_strongest_first() -> None:
    pair = draw_pair(3)
    singular = torch.linalg.svdvals(delta(pair))[:3]
    torch.testing.assert_close(canonicalize(pair).up.norm(dim=0), singular)


@pytest.mark.parametrize("rank", [1, 2])
def test_a_zero_delta_has_a_finite_canonical_form_and_the_dtype_stays(rank: int) -> None:
    for pair in (
        LoraPair(down=draw(rank, 5, dtype=torch.float32), up=torch.zeros(7, rank)),
        LoraPair(down=torch.zeros(rank, 5), up=draw(7, rank, dtype=torch.float32)),
    ):
        form = canonicalize(pair)
        assert form.down.dtype == form.up.dtype == torch.float32
        assert bool(form.down.isfinite().all())
        assert torch.equal(delta(form), torch.zeros(7, 5))
