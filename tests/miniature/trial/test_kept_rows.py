"""Rows of a trial that another run need not measure again."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperdream_core.errors import OutputError
from hyperdream_core.miniature.trial import trial as module
from hyperdream_core.miniature.trial.config import TrialConfig
from hyperdream_core.miniature.trial.kept_rows import keep_row, kept_row, trial_digest
from hyperdream_core.miniature.trial.trial import evaluate
from hyperdream_core.pipelines.scores import MethodScores, score_method


def _row() -> MethodScores:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(3, 2, 5, generator=generator), dim=-1)
    hits = {"style": torch.rand(3, 2, generator=generator) > 0.5}
    return score_method("prediction k=1", embeddings, embeddings[:, 0], hits, torch.rand(3, 2, generator=generator))


def test_a_kept_row_comes_back_as_it_was(tmp_path: Path) -> None:
    row = _row()
    keep_row(tmp_path, "trial", row)
    back = kept_row(tmp_path, "trial", row.name)
    assert back is not None
    for name in ("similarity_by_person", "attributes_by_person"):
        assert torch.equal(getattr(back, name), getattr(row, name))
    same = {"similarity_by_person": row.similarity_by_person, "attributes_by_person": row.attributes_by_person}
    assert replace(back, **same) == row


def test_rows_of_another_trial_and_damaged_ones_are_measured_anew(tmp_path: Path) -> None:
    row = _row()
    keep_row(tmp_path, "trial", row)
    assert kept_row(tmp_path, "another", row.name) is None and kept_row(tmp_path, "trial", "base") is None
    (tmp_path / "rows" / "prediction-k=1.json").write_text("{")
    assert kept_row(tmp_path, "trial", row.name) is None


BROKEN: dict[str, Any] = {
    "empty": "",
    "a list": "[]",
    "deep": "[" * 50_000,
    "NaN": ("similarity", {"mean": float("nan"), "low": 0.0, "high": 1.0}),
    "Infinity": ("top1", float("inf")),
    "many digits": '{"trial": "trial", "top1": ' + "9" * 5_000 + "}",
    "a text": ("top1", "0.5"),
    "true": ("seconds", True),
    "no interval": ("copy", {"mean": 0.5}),
    "another name": ("name", "base"),
    "another setting": ("colour", 1.0),
    "fewer people": ("similarity_by_person", [0.5]),
    "no people": ("attributes_by_person", None),
    "people of people": ("attributes_by_person", [[0.1], [0.2], [0.3]]),
    "too large": ("similarity_by_person", [10**39, 0.1, 0.1]),
    "half a character": '{"trial": "\\ud800"}',
    "no attributes": ("per_attribute", None),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_row_that_no_trial_has_written_is_measured_anew(kind: str, tmp_path: Path) -> None:
    row, broken = _row(), BROKEN[kind]
    keep_row(tmp_path, "trial", row)
    assert kept_row(tmp_path, "trial", row.name, 3) is not None and kept_row(tmp_path, "trial", row.name, 4) is None
    path = tmp_path / "rows" / "prediction-k=1.json"
    if not isinstance(broken, str):
        broken = json.dumps({**json.loads(path.read_text()), broken[0]: broken[1]})
    path.write_text(broken)
    assert kept_row(tmp_path, "trial", row.name, 3) is None
    keep_row(tmp_path, "trial", row)
    assert kept_row(tmp_path, "trial", row.name, 3) is not None


@pytest.mark.parametrize("misplaced", ["rows", "rows/prediction-k=1.json"])
def test_a_row_that_cannot_be_kept_is_said_before_anything_is_measured(misplaced: str, tmp_path: Path) -> None:
    place = tmp_path / misplaced
    if misplaced == "rows":
        place.write_text("a file")
        with pytest.raises(OutputError, match="rows"):
            evaluate(TrialConfig(people=2), weights=tmp_path, keep=tmp_path)
    else:
        place.mkdir(parents=True)
    assert kept_row(tmp_path, "trial", "prediction k=1") is None
    with pytest.raises(OutputError, match=r"rows|prediction"):
        keep_row(tmp_path, "trial", _row())


def test_many_writers_of_one_row_leave_it_whole(tmp_path: Path) -> None:
    row, broken = _row(), []

    def write_and_read() -> None:
        for _ in range(20):
            keep_row(tmp_path, "trial", row)
            if kept_row(tmp_path, "trial", row.name) is None:
                broken.append(1)

    threads = [threading.Thread(target=write_and_read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not broken and [path.name for path in (tmp_path / "rows").iterdir()] == ["prediction-k=1.json"]


@pytest.mark.parametrize("stop", range(4))
def test_a_stopped_trial_ends_as_one_that_was_not(stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    def pictures(trial: object, method: str) -> Tensor:
        drawn.append(method)
        return torch.zeros(1)

    def score(trial: object, method: str, pictures: Tensor, seconds: float) -> MethodScores:
        generator = torch.Generator().manual_seed(len(method))
        embeddings = torch.nn.functional.normalize(torch.randn(3, 2, 5, generator=generator), dim=-1)
        hits = {"style": torch.rand(3, 2, generator=generator) > 0.5}
        return score_method(method, embeddings, embeddings[:, 0].roll(1, 0), hits, torch.zeros(3, 2))

    class Stop(Exception):
        pass

    def stop_there(row: int, rows: int) -> None:
        if row == stop:
            raise Stop

    monkeypatch.setattr(module, "set_up_trial", lambda config, weights: None)
    monkeypatch.setattr(module, "_pictures", pictures)
    monkeypatch.setattr(module, "score_pictures", score)
    config = TrialConfig(people=3, prompts=2, methods=("ceiling", "base", "copy"))
    at_once = evaluate(config, weights=tmp_path, keep=tmp_path / "at-once")
    drawn.clear()
    with pytest.raises(Stop):
        evaluate(config, stop_there, weights=tmp_path, keep=tmp_path / "stopped")
    again = evaluate(config, weights=tmp_path, keep=tmp_path / "stopped")
    assert again.table == at_once.table and again.figures == at_once.figures
    assert drawn == list(config.methods)


def test_a_trial_is_known_by_its_settings_and_weights_but_not_by_its_rows(tmp_path: Path) -> None:
    (tmp_path / "judges").mkdir()
    weights = tmp_path / "judges" / "identity.safetensors"
    weights.write_bytes(b"one")
    config = TrialConfig(people=3)
    first = trial_digest(config, tmp_path)
    assert trial_digest(replace(config, methods=("copy",)), tmp_path) == first
    assert trial_digest(replace(config, seed=4), tmp_path) != first
    weights.write_bytes(b"two")
    assert trial_digest(config, tmp_path) != first
