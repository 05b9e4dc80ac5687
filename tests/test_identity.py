from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hyperdream_core.errors import ConfigError
from hyperdream_core.identity import Identity, averaged, truncated
from hyperdream_core.ops.lowrank import delta


def test_truncation_leaves_out_the_smallest_singular_values(fresh_identity: Callable[..., Identity]) -> None:
    whole = fresh_identity("miniature", rank=4, scale=1.0)
    small = truncated(whole, 3)
    assert small.rank == 3 and truncated(whole, 4) is whole
    narrow = small.expand(torch.float64)
    for name, pair in list(whole.expand(torch.float64).items())[::20]:
        expected = torch.linalg.svdvals(delta(pair))[3]
        torch.testing.assert_close(torch.linalg.matrix_norm(delta(pair) - delta(narrow[name])), expected)


def test_the_mean_is_that_of_the_deltas(fresh_identity: Callable[..., Identity]) -> None:
    one, other = fresh_identity("miniature", rank=2, scale=1.0), fresh_identity("miniature", rank=1, scale=0.3)
    mean = averaged([one, other], [3.0, 1.0]).expand()
    for name, pair in mean.items():
        expected = 0.75 * delta(one.expand()[name]) + 0.25 * delta(other.expand()[name])
        torch.testing.assert_close(delta(pair), expected)
        break
    assert averaged([one]) is one


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [1.0, 1.0, 1.0]])
def test_weights_that_make_no_mean_are_refused(fresh_identity: Callable[..., Identity], weights: list[float]) -> None:
    identity = fresh_identity("miniature")
    with pytest.raises(ConfigError, match=r"2 identities and . weights .* have no mean"):
        averaged([identity, identity], weights)
