from __future__ import annotations

import pytest

from hyperdream_core.pictures.curves import COLOURS, draw_curves, ticks


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0.0, 1.0) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(-0.03, 0.09) == pytest.approx([-0.02, 0.0, 0.02, 0.04, 0.06, 0.08])


def test_points_lie_where_their_numbers_say() -> None:
    picture = draw_curves({"one": {"low": [(0.0, 0.0)], "high": [(1.0, 1.0)]}}, "x", "y", side=200)

    def middle(colour: tuple[int, int, int]) -> tuple[float, float]:
        # In the panel only; the legend has the colours too.
        found = [(x, y) for x in range(60, 280) for y in range(picture.height) if picture.getpixel((x, y)) == colour]
        return sum(x for x, _ in found) / len(found), sum(y for _, y in found) / len(found)

    # Between 6 % margins of a panel of 200 px whose corner is at (70, 70).
    assert middle(COLOURS[1]) == pytest.approx((70 + 200 * 1.06 / 1.12, 70 + 200 * 0.06 / 1.12), abs=1.0)


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="no points"):
        draw_curves({"one": {}}, "x", "y")
