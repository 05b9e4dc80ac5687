"""Rows of a trial that another run need not measure again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from hyperdream_core.miniature.trial.config import TrialConfig
from hyperdream_core.miniature.trial.kept_rows import keep_row, kept_row, trial_digest
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
