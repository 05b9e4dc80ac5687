from __future__ import annotations

import pytest
import torch

from hyperdream_core.errors import ConfigError
from hyperdream_core.ops.bands import (
    DEFAULT_SCHEDULE,
    Bands,
    Curve,
    check_cover,
    first_components,
    owner,
    parse_schedule,
    rank_at,
)
from hyperdream_core.ops.lowrank import LoraPair, canonicalize, delta


def test_bands_are_half_open_and_the_last_has_pure_noise() -> None:
    bands = Bands(((0.5, 1.0), (0.0, 0.5)), (0.25, 1.0))
    assert [bands.at(t) for t in (0.0, 0.4999, 0.5, 0.9995, 1.0)] == [1.0, 1.0, 0.25, 0.25, 0.25]
    assert owner(((0.0, 0.3), (0.3, 1.0)), 0.3) == 1


@pytest.mark.parametrize(
    ("edges", "words"),
    [
        (((0.0, 0.4), (0.5, 1.0)), r"a gap at \[0.4, 0.5\); bands must cover 0 to 1 exactly once"),
        (((0.1, 1.0),), r"a gap at \[0, 0.1\)"),
        (((0.0, 0.9),), r"a gap at \[0.9, 1\)"),
        ((), r"a gap at \[0, 1\)"),
        (((0.0, 0.6), (0.5, 1.0)), r"overlap at \[0.5, 0.6\)"),
        (((0.0, 1.0), (0.2, 0.4)), r"overlap at \[0.2, 0.4\)"),
        (((0.0, 0.0), (0.0, 1.0)), r"band \[0, 0\) is empty"),
        (((0.0, 1.5),), r"leaves 0 to 1"),
    ],
)
def test_gaps_and_overlaps_are_refused(edges: tuple[tuple[float, float], ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_cover(edges)


def test_a_curve_passes_through_its_points_and_rests_there() -> None:
    curve = Curve(((0.0, 1.0), (0.5, 0.8), (1.0, 0.0)))
    assert [curve.at(t) for t in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.8, 0.0])
    assert curve.at(0.75) == pytest.approx(0.4)
    assert abs(curve.at(0.501) - curve.at(0.5)) < 1e-4


@pytest.mark.parametrize("points", [((0.0, 1.0),), ((0.1, 1.0), (1.0, 0.0)), ((0.0, 1.0), (0.5, 1.0), (0.5, 0.0))])
def test_points_that_make_no_curve_are_refused(points: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(ConfigError, match="expected t rising from 0 to 1"):
        Curve(points)


def test_schedules_are_read_as_written() -> None:
    schedules = parse_schedule("base 0-1:1.2; subject 0=1, 1=.5")
    assert schedules == {"base": Bands(((0.0, 1.0),), (1.2,)), "subject": Curve(((0.0, 1.0), (1.0, 0.5)))}
    assert parse_schedule("0-0.5:1, 0.5-1:0") == {"subject": Bands(((0.0, 0.5), (0.5, 1.0)), (1.0, 0.0))}
    assert parse_schedule("default") == parse_schedule(DEFAULT_SCHEDULE) and parse_schedule(" ") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0-0.4:1, 0.5-1:0", "gap"),
        ("0-0.6:1, 0.5-1:0", "overlap"),
        ("0-1", "cannot be read at '0-1'"),
        ("0-0.5:1, 1=0", "cannot be read"),
        ("0-1:1; subject 0-1:1", "sets the dial 'subject' twice"),
    ],
)
def test_schedules_that_mean_nothing_are_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_schedule(text)


def test_factors_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected 0 or more"):
        Bands(((0.0, 1.0),), (-1.0,))


def test_the_rank_shrinks_with_noise_as_in_the_paper() -> None:
    # r(t) = floor((r - r_min) (T - t) / T) + r_min, by hand at r = 8, r_min = 4.
    assert [rank_at(t, 8, 4) for t in (0.0, 0.25, 0.5, 0.9, 1.0)] == [8, 7, 6, 4, 4]
    assert [rank_at(t, 1, 1) for t in (0.0, 1.0)] == [1, 1]


def test_the_first_components_of_a_canonical_pair_are_the_best_of_their_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    pair = LoraPair(torch.randn(3, 5, generator=generator), torch.randn(7, 3, generator=generator))
    kept = first_components(canonicalize(pair), 2)
    left, singular, right = torch.linalg.svd(delta(pair), full_matrices=False)
    torch.testing.assert_close(delta(kept), (left[:, :2] * singular[:2]) @ right[:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text", ["0-1:1," * 20_000, "1" * 50_000, "0=1," * 20_000, ";" * 50_000])
def test_a_schedule_without_end_is_refused_unread(text: str) -> None:
    with pytest.raises(ConfigError, match="characters, expected 2,000 or fewer") as caught:
        parse_schedule(text)
    assert len(str(caught.value)) < 300
