"""Curves of likeness against what the prompt asked for: guidance of every kind over its dials, on the same people.

Each point is a row of a trial of its own, kept in a folder as any other row, so that a sweep can be interrupted.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...bundled import bundled_weights
from ...config import config_to_json
from ...errors import ConfigError
from ...identity import Identity
from ...pictures.curves import draw_curves
from ...pipelines.drawing.guidance_config import GuidanceConfig
from ...pipelines.progress import Progress, no_progress
from ...pipelines.scores import Interval, MethodScores, bootstrap
from .config import TrialConfig
from .kept_rows import check_rows, keep_row, kept_row, trial_digest
from .trial import Trial, draw_people, identities_of, score_pictures, set_up_trial

SWEEP_METHODS = ("prediction", "prediction+40")
"""Whose curves are drawn unless others are named."""

_STRENGTHS = (0.5, 0.75, 1.0, 1.25)
_SHARES = (0.25, 0.5, 0.75, 1.0, 1.25)
_CURVES: dict[str, tuple[str, tuple[float, ...], dict[str, Any]]] = {
    # Name -> what is turned, to which values (of scales: times guidance_scale), and what else is set.
    "plain": ("strength", (0.25, 0.5, 0.75, 1.0, 1.25, 1.5), {"guidance": "plain"}),
    "hybrid": ("subject_scale", _SHARES, {"guidance": "hybrid"}),
    "base-null": ("strength", _STRENGTHS, {"guidance": "base-null"}),
    "mix": ("base_scale", (0.6, 1.0, 1.5, 2.0), {"guidance": "mix", "subject_scale": 0.6}),
    "blend": ("subject_scale", (0.25, 0.5, 0.75, 1.25), {"guidance": "blend"}),
    "reference-null": ("strength", _STRENGTHS, {"guidance": "reference-null"}),
    "scheduled": ("subject_scale", _SHARES, {"guidance": "hybrid", "schedule": "default"}),
    "rescaled": ("subject_scale", _SHARES, {"guidance": "hybrid", "rescale": 0.7}),
    "weak null": ("strength", _STRENGTHS, {"guidance": "plain", "null_strength": 0.5}),
    "banded": ("strength", _STRENGTHS, {"guidance": "plain", "active": (0.0, 0.8)}),
}
CURVES = tuple(_CURVES)


@dataclass(frozen=True)
class Point:
    """One setting of a curve."""

    curve: str
    setting: str
    """as the table shows it"""
    changes: Mapping[str, Any]
    """of the trial's configuration"""

    @property
    def folder(self) -> str:
        """Where its rows are kept."""
        return re.sub(r"[^a-z0-9.=]+", "-", f"{self.curve} {self.setting}")


@dataclass(frozen=True)
class SweepRow:
    """What one method reached at one point."""

    method: str
    point: Point
    scores: MethodScores
    won_back: Interval | None
    """share of the attribute accuracy that plain guidance loses at the same similarity and this does not; None for
    plain guidance itself, and where it never gets that similar or loses nothing"""


@dataclass(frozen=True)
class SweepReport:
    """The outcome of a sweep."""

    rows: tuple[SweepRow, ...]
    table: str
    figures: dict[str, Any]
    picture: Image.Image


def points_of(curve: str, guidance_scale: float) -> list[Point]:
    """The points of a curve in order.

    Raises:
        ConfigError: no such curve.
    """
    if curve not in _CURVES:
        raise ConfigError(f"unknown curve {curve!r}; known: {', '.join(CURVES)}")
    dial, values, fixed = _CURVES[curve]
    # Shares of mix and blend are shares; scales are written as multiples of plain guidance's.
    unit = guidance_scale if dial == "base_scale" or (dial, fixed["guidance"]) == ("subject_scale", "hybrid") else 1.0
    return [
        Point(curve, f"{dial}={value * unit:g}", {**fixed, "guidance_scale": guidance_scale, dial: value * unit})
        for value in values
    ]


def sweep(
    config: TrialConfig | None = None,
    curves: Sequence[str] = (),
    progress: Progress = no_progress,
    weights: Path | None = None,
    keep: Path | None = None,
) -> SweepReport:
    """Run every curve for every method of the configuration.

    Args:
        config: of the trial; its guidance is the sweep's to set, but for guidance_scale.
        curves: some of `CURVES`; empty is all. `plain` is always among them, to compare with.
        progress: called with (points done, points).
        weights: folder of base, hypernetwork and judges; the shipped one by default.
        keep: folder where finished points are kept, and taken from if they are of the same trial.

    Raises:
        ConfigError: an unknown curve, a method without adapters, or guidance set twice.
    """
    config, weights = config or TrialConfig(methods=SWEEP_METHODS), weights or bundled_weights() / "miniature"
    _check(config)
    names = tuple(dict.fromkeys(("plain", *(curves or CURVES))))
    points = [point for name in names for point in points_of(name, config.guidance_scale)]
    if keep:
        check_rows(keep / "sweep" / points[0].folder)
    work = _Sweep(config, weights, keep)
    base = work.measure("base", Point("base", "", {}))
    rows: list[SweepRow] = []
    total = len(points) * len(config.methods)
    for method in config.methods:
        plain: list[MethodScores] = [base]
        for point in points:
            progress(len(rows), total)
            scores = work.measure(method, point)
            if point.curve == "plain":
                plain.append(scores)
            rows.append(SweepRow(method, point, scores, None))
        first = len(rows) - len(points)
        rows[first:] = [
            replace(row, won_back=won_back(row.scores, base, plain)) if row.point.curve != "plain" else row
            for row in rows[first:]
        ]
    progress(total, total)
    return SweepReport(tuple(rows), format_sweep(rows, base), _figures(config, rows, base), _picture(rows, base))


class _Sweep:
    """The trial at work; set up only if a point is not there yet, and each method's adapters made once."""

    def __init__(self, config: TrialConfig, weights: Path, keep: Path | None) -> None:
        self.config, self.weights, self.keep = config, weights, keep
        self._trial: Trial | None = None
        self._identities: dict[str, Sequence[Identity | None]] = {}

    def measure(self, method: str, point: Point) -> MethodScores:
        config = replace(self.config, **point.changes)
        # The base's row is an ordinary one, shared with `evaluate`.
        folder = self.keep / "sweep" / point.folder if self.keep and point.changes else self.keep
        digest = trial_digest(config, self.weights) if folder else ""
        if folder and (row := kept_row(folder, digest, method, config.people)):
            return row
        if self._trial is None:
            self._trial = set_up_trial(self.config, self.weights)
        if method not in self._identities:
            # One method's at a time: polished adapters of a hundred people are large.
            self._identities = {method: identities_of(self._trial, method)}
        trial = replace(self._trial, config=config)
        started = time.perf_counter()
        pictures = draw_people(trial, self._identities[method])
        row = score_pictures(trial, method, pictures, time.perf_counter() - started)
        if folder:
            keep_row(folder, digest, row)
        return row


def won_back(scores: MethodScores, base: MethodScores, plain: Sequence[MethodScores]) -> Interval | None:
    """(attributes - plain's) / (base's - plain's), plain's being read off its curve at the same similarity.

    Resampled over people together. None where plain's curve does not reach that similarity, or loses under half a
    percent there, which no interval of such a share would survive.

    Args:
        scores: of the point in question.
        base: of the base alone.
        plain: the points of plain guidance in order of strength, the base's first.
    """
    columns = [scores.similarity_by_person, scores.attributes_by_person, base.attributes_by_person]
    columns += [one.similarity_by_person for one in plain] + [one.attributes_by_person for one in plain]
    values = torch.stack(columns, -1).double()
    count = len(plain)

    def plains(mean: Tensor) -> Tensor:
        return _read_off(mean[..., 3 : 3 + count], mean[..., 3 + count :], mean[..., 0])

    mean = values.mean(0)
    reached = float(mean[3 : 3 + count].min()) <= float(mean[0]) <= float(mean[3 : 3 + count].max())
    if not reached or float(mean[2] - plains(mean)) < 0.005:
        return None
    return bootstrap(values, lambda means: (means[..., 1] - plains(means)) / (means[..., 2] - plains(means)))


def format_sweep(rows: Sequence[SweepRow], base: MethodScores) -> str:
    """The rows as a Markdown table; `beyond` is more similar than plain guidance ever gets."""
    reach: dict[str, float] = {}
    for row in rows:
        if row.point.curve == "plain":
            reach[row.method] = max(reach.get(row.method, -1.0), row.scores.similarity.mean)
    lines = [
        "| method | guidance | setting | similarity [95 %] | attributes [95 %] | won back [95 %] | copy |",
        "|---|---|---|---|---|---|---|",
        f"| base | plain |  | {base.similarity} | {base.attributes} | - | {base.copy.mean:.2f} |",
    ]
    for row in rows:
        scores = row.scores
        is_beyond = scores.similarity.mean > reach[row.method]
        lines.append(
            f"| {row.method} | {row.point.curve} | {row.point.setting} | {scores.similarity} | {scores.attributes} | "
            f"{row.won_back or ('beyond' if is_beyond else '-')} | {scores.copy.mean:.2f} |"
        )
    return "\n".join(lines)


def _check(config: TrialConfig) -> None:
    default = GuidanceConfig()
    for field in fields(GuidanceConfig):
        if field.name != "guidance_scale" and getattr(config, field.name) != getattr(default, field.name):
            raise ConfigError(f"a sweep sets {field.name} itself, got {getattr(config, field.name)!r}; leave it out")
    for method in config.methods:
        if not method.startswith(("prediction", "scratch+")):
            raise ConfigError(f"method {method!r} has no adapters to sweep over; name 'prediction', 'prediction+N' ...")


def _read_off(x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    """The highest y (...) of the line through points (..., n) where it passes `at` (...); else its nearest point's."""
    at = at.unsqueeze(-1)
    left, right, low, high = x[..., :-1], x[..., 1:], y[..., :-1], y[..., 1:]
    share = (at - left) / torch.where(right == left, torch.full_like(left, 1e-12), right - left)
    crossed = torch.where((share >= 0) & (share <= 1), low + share * (high - low), float("-inf")).amax(-1)
    nearest = y.gather(-1, (x - at).abs().argmin(-1, keepdim=True)).squeeze(-1)
    return torch.where(crossed.isinf(), nearest, crossed)


def _figures(config: TrialConfig, rows: Sequence[SweepRow], base: MethodScores) -> dict[str, Any]:
    entries = [
        {
            "method": row.method,
            "curve": row.point.curve,
            "changes": dict(row.point.changes),
            "similarity": asdict(row.scores.similarity),
            "attributes": asdict(row.scores.attributes),
            "copy": asdict(row.scores.copy),
            "won_back": asdict(row.won_back) if row.won_back else None,
        }
        for row in rows
    ]
    alone = {"similarity": asdict(base.similarity), "attributes": asdict(base.attributes)}
    return {"config": config_to_json(config), "base": alone, "points": entries}


def _picture(rows: Sequence[SweepRow], base: MethodScores) -> Image.Image:
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        panel = panels.setdefault(row.method, {"base": [(base.similarity.mean, base.attributes.mean)]})
        point = (row.scores.similarity.mean, row.scores.attributes.mean)
        panel.setdefault(row.point.curve, []).append(point)
    return draw_curves(panels, "identity similarity", "attribute accuracy", title="Likeness against the prompt")
