"""Schedules and bands: whatever text and edges come, they are read as written or refused in one sentence."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperdream_core.errors import ConfigError
from hyperdream_core.ops.bands import Bands, Curve, check_cover, owner, parse_schedule, rank_at

levels = st.floats(0, 1, allow_nan=False)
factors = st.integers(0, 400).map(lambda hundredths: hundredths / 100)


@st.composite
def covers(draw: st.DrawFn) -> list[tuple[float, float]]:
    """Edges that cover 0 to 1, in any order."""
    inner = draw(st.lists(st.integers(1, 99), max_size=5, unique=True))
    edges = [0.0, *(one / 100 for one in sorted(inner)), 1.0]
    return draw(st.permutations(list(pairwise(edges))))


@given(covers(), levels)
def test_exactly_one_band_owns_a_level(edges: list[tuple[float, float]], t: float) -> None:
    check_cover(edges)
    start, end = edges[owner(edges, t)]
    assert start <= t and (t < end or t == end == 1)


@given(covers(), st.data())
def test_a_gap_or_an_overlap_is_refused(edges: list[tuple[float, float]], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(edges) - 1))
    start, end = edges[index]
    for broken in ((start, (start + end) / 2), (start / 2, end) if start else (start, end / 2)):
        with pytest.raises(ConfigError, match=r"gap|overlap"):
            check_cover([*edges[:index], broken, *edges[index + 1 :]])


@given(covers(), st.data())
def test_bands_as_text_are_the_bands(edges: list[tuple[float, float]], data: st.DataObject) -> None:
    values = data.draw(st.lists(factors, min_size=len(edges), max_size=len(edges)))
    text = ", ".join(f"{start:g}-{end:g}:{value:g}" for (start, end), value in zip(edges, values, strict=True))
    for dial, words in (("subject", text), ("base", f"base {text}")):
        schedule = parse_schedule(words)[dial]
        assert isinstance(schedule, Bands)
        assert schedule.edges == tuple(edges) and schedule.values == tuple(values)


@given(covers(), st.data())
def test_a_curve_passes_its_points_and_stays_between_them(
    edges: list[tuple[float, float]], data: st.DataObject
) -> None:
    places = sorted({start for start, _ in edges} | {1.0})
    values = data.draw(st.lists(factors, min_size=len(places), max_size=len(places)))
    points = list(zip(places, values, strict=True))
    schedule = parse_schedule(", ".join(f"{t:g}={value:g}" for t, value in points))["subject"]
    assert isinstance(schedule, Curve)
    for t, value in points:
        assert schedule.at(t) == pytest.approx(value, abs=1e-12)
    for (left, low), (right, high) in pairwise(points):
        middle = schedule.at((left + right) / 2)
        assert min(low, high) - 1e-12 <= middle <= max(low, high) + 1e-12


@given(st.text(alphabet="0123456789.-=:,; basubject\n", max_size=40))
def test_any_text_is_a_schedule_or_one_sentence(text: str) -> None:
    try:
        schedules = parse_schedule(text)
    except ConfigError as error:
        assert "\n" not in str(error).replace(text, "")
    else:
        assert set(schedules) <= {"base", "subject"}
        assert all(schedule.at(t) >= 0 for schedule in schedules.values() for t in (0.0, 0.5, 1.0))


@given(st.integers(1, 64), st.data(), levels, levels)
def test_the_rank_grows_as_noise_goes(rank: int, data: st.DataObject, one: float, other: float) -> None:
    least = data.draw(st.integers(0, rank))
    low, high = sorted((one, other))
    assert least <= rank_at(high, rank, least) <= rank_at(low, rank, least) <= rank
    assert rank_at(0.0, rank, least) == rank and rank_at(1.0, rank, least) == least
