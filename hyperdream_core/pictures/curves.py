"""One sheet of curves: panels side by side with common axes, points in order, and a legend; drawn with Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from .grid import FAINT, INK, PAPER, label_font

Curves = Mapping[str, Sequence[tuple[float, float]]]
"""Name -> its points (x, y) in order; a single point is a mark without a line."""

# Okabe and Ito's colours, which are told apart with any kind of sight, and four more in between.
COLOURS = (
    (38, 38, 42), (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233),
    (120, 80, 40), (120, 120, 200), (150, 150, 60),
)  # fmt: skip
_FINER = 3
"""Drawn this many times larger and reduced: Pillow draws lines without antialiasing."""


@dataclass(frozen=True)
class _Axes:
    """One panel's frame: where a point lies, in px of the large drawing."""

    left: int
    top: int
    side: int
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        (x_low, x_high), (y_low, y_high) = self.x_range, self.y_range
        return (
            self.left + (x - x_low) / (x_high - x_low) * self.side,
            self.top + (y_high - y) / (y_high - y_low) * self.side,
        )


def draw_curves(
    panels: Mapping[str, Curves], x_label: str, y_label: str, *, title: str = "", side: int = 420
) -> Image.Image:
    """Draw panels of curves, one colour for each name in all of them.

    Args:
        panels: heading -> curves.
        x_label: of all panels.
        y_label: of all panels.
        title: large, above everything.
        side: of a panel in px.
    """
    points = [point for curves in panels.values() for curve in curves.values() for point in curve]
    if not points:
        raise ValueError("there are no points to draw")
    ranges = [_range([point[axis] for point in points]) for axis in (0, 1)]
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    large, gap = side * _FINER, 70 * _FINER
    font = label_font(13 * _FINER)
    legend = math.ceil(max(font.getlength(name) for name in names)) + 50 * _FINER
    width = gap + len(panels) * (large + gap) + legend
    sheet = Image.new("RGB", (width, large + 2 * gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, 12 * _FINER), title, font=label_font(18 * _FINER), fill=INK)
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    for index, (heading, curves) in enumerate(panels.items()):
        axes = _Axes(gap + index * (large + gap), gap, large, ranges[0], ranges[1])
        _draw_frame(draw, axes, heading, x_label, y_label)
        for name, curve in curves.items():
            _draw_curve(draw, [axes.place(*point) for point in curve], colours[name])
    for index, name in enumerate(names):
        x, y = width - legend, gap + index * 22 * _FINER
        _draw_curve(draw, [(x, y), (x + 26 * _FINER, y)], colours[name])
        draw.text((x + 36 * _FINER, y), name, font=font, fill=INK, anchor=_anchor(font, "lm"))
    return sheet.resize((sheet.width // _FINER, sheet.height // _FINER), Image.Resampling.BOX)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from low to high."""
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) < count + 1.5)
    return [step * index for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin


def _draw_frame(draw: ImageDraw.ImageDraw, axes: _Axes, heading: str, x_label: str, y_label: str) -> None:
    font, right, bottom = label_font(12 * _FINER), axes.left + axes.side, axes.top + axes.side
    for x in ticks(*axes.x_range):
        place = axes.place(x, axes.y_range[0])[0]
        draw.line([(place, axes.top), (place, bottom)], fill=(228, 226, 221), width=_FINER)
        draw.text((place, bottom + 6 * _FINER), f"{x:g}", font=font, fill=FAINT, anchor=_anchor(font, "ma"))
    for y in ticks(*axes.y_range):
        place = axes.place(axes.x_range[0], y)[1]
        draw.line([(axes.left, place), (right, place)], fill=(228, 226, 221), width=_FINER)
        draw.text((axes.left - 6 * _FINER, place), f"{y:g}", font=font, fill=FAINT, anchor=_anchor(font, "rm"))
    draw.rectangle([axes.left, axes.top, right, bottom], outline=FAINT, width=_FINER)
    middle = axes.left + axes.side / 2
    draw.text((middle, bottom + 28 * _FINER), x_label, font=font, fill=INK, anchor=_anchor(font, "ma"))
    # Above the axis, where it need not be turned.
    draw.text((axes.left, axes.top - 20 * _FINER), f"{heading}: {y_label}", font=font, fill=INK)


def _draw_curve(draw: ImageDraw.ImageDraw, places: Sequence[tuple[float, float]], colour: tuple[int, int, int]) -> None:
    if len(places) > 1:
        draw.line(list(places), fill=colour, width=2 * _FINER, joint="curve")
    for x, y in places:
        radius = 3.5 * _FINER
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)


def _anchor(font: object, anchor: str) -> str | None:
    # Pillow's bitmap font, all that it had before 10.1, knows no anchors and raises on them.
    return anchor if hasattr(font, "getmask2") else None
