from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from hyperdream_core.errors import BaseMismatchError, ConfigError
from hyperdream_core.identity import Adapter, Identity, averaged, blended, truncated
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


LOW, HIGH = (0.0, 0.5), (0.5, 1.0)


def banded(fresh_identity: Callable[..., Identity], **kinds: float) -> Identity:
    """Rank 2, with the scales `low` and `high` of its two bands."""
    parts = [fresh_identity("miniature", rank=2, scale=kinds[name]) for name in ("low", "high")]
    entries = {f"{name}.band{k}": c for k, one in enumerate(parts) for name, c in one.coefficients.items()}
    return replace(parts[0], bands=(LOW, HIGH), coefficients=entries)


def deltas(identity: Identity) -> Iterator[torch.Tensor]:
    """Of a few layers in each band."""
    for band in identity.bands:
        for pair in list(identity.changes(band).values())[::20]:
            yield delta(pair)


def test_an_identity_is_an_adapter_of_one_band(fresh_identity: Callable[..., Identity]) -> None:
    identity = fresh_identity("miniature", scale=1.0)
    assert isinstance(identity, Adapter) and identity.is_constant and identity.bands == ((0.0, 1.0),)
    pairs = identity.expand()
    for name, pair in identity.changes((0.0, 1.0)).items():
        assert torch.equal(pair.up, pairs[name].up)


def test_each_band_is_the_identity_that_it_was_made_of(fresh_identity: Callable[..., Identity]) -> None:
    both = banded(fresh_identity, low=1.0, high=0.25)
    assert not both.is_constant
    low = fresh_identity("miniature", rank=2, scale=1.0).expand()
    for name, pair in both.changes(LOW).items():
        assert torch.equal(pair.up, low[name].up)
    assert both.of_band(HIGH).is_constant
    with pytest.raises(ConfigError, match=r"has the noise bands \[0, 0.5\) and \[0.5, 1\), not \[0, 1\)"):
        both.changes((0.0, 1.0))
    with pytest.raises(ConfigError, match=r"neither merged nor exported as a LoRA nor polished\. Draw with it live"):
        both.expand()


def test_algebra_works_band_by_band(fresh_identity: Callable[..., Identity]) -> None:
    one, other = banded(fresh_identity, low=1.0, high=0.25), banded(fresh_identity, low=0.5, high=2.0)
    pairs = list(zip(deltas(one), deltas(other), strict=True))
    for made, expected in (
        (one.scaled(0.3), [0.3 * a for a, _ in pairs]),
        (one.concatenated(other), [a + b for a, b in pairs]),
        (averaged([one, other], [3.0, 1.0]), [0.75 * a + 0.25 * b for a, b in pairs]),
        (blended(one, other, 0.25), [0.75 * a + 0.25 * b for a, b in pairs]),
        (one.canonicalized(), [a for a, _ in pairs]),
        (truncated(one.concatenated(one), 2), [2 * a for a, _ in pairs]),
    ):
        assert made.bands == one.bands
        for found, wanted in zip(deltas(made), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_distances_are_those_of_the_weight_changes_in_each_band(fresh_identity: Callable[..., Identity]) -> None:
    one, other = banded(fresh_identity, low=1.0, high=0.25), banded(fresh_identity, low=0.5, high=0.25)
    low, high = one.distances(other)
    first, second = one.changes(LOW), other.changes(LOW)
    whole = sum((delta(first[n]).double() - delta(second[n]).double()).square().sum().item() for n in first)
    assert low == pytest.approx(whole**0.5, rel=1e-4) and high == 0


def test_identities_of_different_bands_do_not_mix(fresh_identity: Callable[..., Identity]) -> None:
    constant, both = fresh_identity("miniature", rank=2), banded(fresh_identity, low=1.0, high=1.0)
    nearly = replace(both, bands=(LOW, (0.5, 1.0 - 1e-9)))
    for other in (constant, nearly):
        for act in (both.concatenated, both.distances, lambda other: blended(both, other, 0.0)):
            with pytest.raises(BaseMismatchError, match=r"noise bands must agree\. Draw apart"):
                act(other)


@pytest.mark.parametrize(
    ("bands", "words"),
    [
        ((), "there is no noise band"),
        (((0.5, 1.0), (0.0, 0.5)), "starts below 1"),
        (((0.0, 0.6), (0.5, 1.0)), "starts below 0.6"),
        (((0.0, float("nan")),), "is empty or leaves 0 to 1"),
        (((0.3, 0.3),), "is empty or leaves 0 to 1"),
    ],
)
def test_bands_that_are_none_are_refused(
    fresh_identity: Callable[..., Identity], bands: tuple[tuple[float, float], ...], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(fresh_identity("miniature"), bands=bands)


def test_a_band_without_its_layers_is_refused(fresh_identity: Callable[..., Identity]) -> None:
    with pytest.raises(BaseMismatchError, match=r"each of its 80 layers in each of its 2 bands, but .*band0' is miss"):
        replace(fresh_identity("miniature"), bands=(LOW, HIGH))
