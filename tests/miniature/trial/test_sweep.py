"""Curves over dials: what is compared with what, and that a sweep goes on where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hyperdream_core.errors import ConfigError
from hyperdream_core.miniature.trial import sweep as module
from hyperdream_core.miniature.trial.config import TrialConfig
from hyperdream_core.miniature.trial.sweep import CURVES, Point, SweepRow, format_sweep, points_of, sweep, won_back
from hyperdream_core.pipelines.drawing.guidance_config import GuidanceConfig, Guide
from hyperdream_core.pipelines.scores import MethodScores, score_method


def scores(similarity: float, attributes: float, name: str = "prediction") -> MethodScores:
    """A method of that similarity and accuracy, the same for six people."""
    reference = torch.eye(6, 8)
    pictures = F.normalize(torch.eye(8)[6].expand(6, 8), dim=-1) * (1 - similarity**2) ** 0.5 + similarity * reference
    row = score_method(name, pictures.unsqueeze(1), reference, {"style": torch.ones(6, 1).bool()}, torch.zeros(6, 1))
    return replace(row, attributes_by_person=torch.full((6,), attributes))


def test_what_is_won_back_is_read_off_the_plain_curve() -> None:
    base, plain = scores(0.0, 1.0), [scores(0.0, 1.0), scores(0.4, 0.8), scores(0.8, 0.4)]
    # At similarity 0.6 plain guidance is at 0.6: 0.8 is half of the way back to 1.
    found = won_back(scores(0.6, 0.8), base, plain)
    assert found is not None and found.mean == pytest.approx(0.5, abs=1e-5)
    assert found.low == pytest.approx(found.high)
    on_it = won_back(plain[1], base, plain)
    assert on_it is not None and on_it.mean == pytest.approx(0.0, abs=1e-5)
    assert won_back(scores(0.9, 0.9), base, plain) is None
    assert won_back(scores(0.001, 1.0), base, plain) is None


def test_a_plain_curve_that_turns_back_counts_at_its_best() -> None:
    base = scores(0.0, 1.0)
    plain = [base, scores(0.8, 0.8), scores(0.4, 0.2)]
    found = won_back(scores(0.4, 0.95), base, plain)
    assert found is not None and found.mean == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("curve", CURVES)
def test_every_point_is_a_setting_that_can_be_drawn(curve: str) -> None:
    points = points_of(curve, 2.5)
    assert len({point.folder for point in points}) == len(points) >= 4
    names = {field.name for field in fields(GuidanceConfig)}
    for point in points:
        assert set(point.changes) <= names
        Guide(replace(TrialConfig(), **point.changes)).at(0.9)


@dataclass(frozen=True)
class EmptyTrial:
    config: TrialConfig


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, float]]:
    """What is measured, and how often, in a trial that draws nothing: likeness costs half as much in hybrid."""
    seen: list[tuple[str, str, float]] = []

    def score(trial: Any, method: str, pictures: Any, seconds: float) -> MethodScores:
        config = trial.config
        seen.append((method, config.guidance, config.strength))
        dial = 0.0 if method == "base" else config.strength * (config.subject_scale or 1.5) / 2
        return scores(0.5 * dial, 1 - dial * (0.2 if config.guidance == "hybrid" else 0.4), method)

    def identities(trial: Any, method: str) -> Sequence[None]:
        return [None]

    def set_up(config: TrialConfig, weights: Path) -> Any:
        return EmptyTrial(config)

    monkeypatch.setattr(module, "set_up_trial", set_up)
    monkeypatch.setattr(module, "identities_of", identities)
    monkeypatch.setattr(module, "draw_people", lambda trial, identities: None)
    monkeypatch.setattr(module, "score_pictures", score)
    return seen


def test_a_sweep_compares_with_plain_guidance_and_goes_on_where_it_stopped(
    drawn: list[tuple[str, str, float]], tmp_path: Path
) -> None:
    config = TrialConfig(people=6, prompts=1, guidance_scale=1.0, methods=("prediction",))
    report = sweep(config, ["hybrid"], weights=tmp_path, keep=tmp_path / "kept")
    assert [row.point.curve for row in report.rows] == ["plain"] * 6 + ["hybrid"] * 5
    assert all(row.won_back and row.won_back.mean == pytest.approx(0.5, abs=0.01) for row in report.rows[6:])
    assert all(row.won_back is None for row in report.rows[:6])
    assert report.table.count("\n") == 2 + 11 and report.figures["points"][6]["changes"]["guidance"] == "hybrid"
    assert report.picture.width > report.picture.height
    assert len(drawn) == 12
    (tmp_path / "kept" / "sweep" / "hybrid-subject-scale=0.5" / "rows" / "prediction.json").unlink()
    again = sweep(config, ["hybrid"], weights=tmp_path, keep=tmp_path / "kept")
    assert again.table == report.table and drawn[12:] == [("prediction", "hybrid", 1.0)]


def test_more_similar_than_plain_guidance_ever_gets_is_called_beyond() -> None:
    plain = SweepRow("prediction", Point("plain", "strength=1", {}), scores(0.5, 0.9), None)
    more = SweepRow("prediction", Point("hybrid", "subject_scale=1", {}), scores(0.6, 0.9), None)
    lines = format_sweep([plain, more], scores(0.0, 1.0)).splitlines()
    assert "| - |" in lines[-2] and "| beyond |" in lines[-1]


def test_what_a_sweep_cannot_draw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown curve 'circle'; known: plain, hybrid"):
        sweep(TrialConfig(methods=("prediction",)), ["circle"], weights=tmp_path)
    with pytest.raises(ConfigError, match="method 'copy' has no adapters to sweep over"):
        sweep(TrialConfig(methods=("copy",)), weights=tmp_path)
    with pytest.raises(ConfigError, match=r"a sweep sets strength itself, got 0\.5"):
        sweep(TrialConfig(methods=("prediction",), strength=0.5), weights=tmp_path)


def test_points_have_folders_of_their_own() -> None:
    assert Point("weak null", "strength=0.5", {}).folder == "weak-null-strength=0.5"
