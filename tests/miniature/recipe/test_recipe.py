"""The whole recipe at toy scale: every stage runs, resumes, publishes, and what it publishes can be used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hyperdream_core.errors import ConfigError
from hyperdream_core.miniature.recipe.materials import quick
from hyperdream_core.miniature.recipe.publish import PUBLISHED, SINGLE_FILE, publish, write_card
from hyperdream_core.miniature.recipe.recipe import Recipe
from hyperdream_core.miniature.trial.config import TrialConfig
from hyperdream_core.miniature.trial.sweep import sweep
from hyperdream_core.miniature.trial.trial import evaluate
from hyperdream_core.pipelines.diffusers.loading import load_base


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    recipe = Recipe(tmp_path_factory.mktemp("recipe"), quick())
    target = tmp_path_factory.mktemp("weights")
    publish(recipe, target)
    return recipe, target


def test_the_trial_runs_on_what_was_published(published: tuple[Recipe, Path]) -> None:
    _, target = published
    methods = ("ceiling", "base", "prediction", "prediction+1")
    config = TrialConfig(people=2, prompts=2, methods=methods, sample_steps=2)
    report = evaluate(config, weights=target)
    assert [row.name for row in report.rows] == list(methods)
    assert report.figures["rows"]["ceiling"]["gap_closed"]["mean"] == pytest.approx(1.0)
    write_card(target, report.table, report.figures)
    assert "2 unseen people x 2 prompts" in (target / "MODEL_CARD.md").read_text()


def test_a_sweep_runs_on_what_was_published(published: tuple[Recipe, Path], tmp_path: Path) -> None:
    _, target = published
    config = TrialConfig(people=2, prompts=1, methods=("prediction",), sample_steps=2)
    report = sweep(config, ["reference-null", "scheduled"], weights=target, keep=tmp_path)
    assert [row.point.curve for row in report.rows] == ["plain"] * 6 + ["reference-null"] * 4 + ["scheduled"] * 5
    # What evaluate calls the base is the sweep's base, and is not drawn again.
    (base,) = evaluate(replace(config, methods=("base",)), weights=target, keep=tmp_path).rows
    assert report.figures["base"]["similarity"]["mean"] == base.similarity.mean


def test_the_manifest_lists_every_file_with_its_digest(published: tuple[Recipe, Path]) -> None:
    recipe, target = published
    entries = json.loads((target / "manifest.json").read_text())
    assert {"hypernetwork.safetensors", "base/unet/config.json"} <= set(entries)
    assert entries["recipe.json"]["bytes"] == (target / "recipe.json").stat().st_size
    assert load_base(recipe.folder / SINGLE_FILE).fingerprint() == load_base(target / "base").fingerprint()


def test_a_finished_stage_is_not_trained_again(published: tuple[Recipe, Path]) -> None:
    recipe, _ = published

    def refuse(step: int, steps: int) -> None:
        raise AssertionError("trained again")

    assert replace(recipe, progress=refuse).hypernetwork() == recipe.folder / "hypernetwork-0-2"


def test_stopped_and_then_taken_a_round_further_a_build_has_the_same_weights(
    published: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, _ = published

    class Stop(Exception):
        pass

    def stop_at_the_second_step(step: int, steps: int) -> None:
        if steps == 2 and step == 1:
            raise Stop

    for name in ("corpus", "latents", "encoder-only", "tokenizer"):
        (tmp_path / name).symlink_to(recipe.folder / name)
    with pytest.raises(Stop):
        Recipe(tmp_path, quick(), stop_at_the_second_step).base()
    Recipe(tmp_path, replace(quick(), rounds=1)).base()
    Recipe(tmp_path, quick()).base()
    ours, theirs = (folder / "base-2/unet/diffusion_pytorch_model.safetensors" for folder in (tmp_path, recipe.folder))
    from safetensors.torch import load_file

    first, second = load_file(ours), load_file(theirs)
    for key, value in first.items():
        torch.testing.assert_close(value, second[key], rtol=0.0, atol=0.0)


def test_the_room_that_a_build_takes_is_known_before_it(published: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, target = published
    taken = sum(path.stat().st_size for path in recipe.folder.rglob("*") if path.is_file())
    needed = Recipe(tmp_path, quick()).room()
    assert taken < needed < 1.6 * taken and recipe.room() < 0.1 * taken
    assert sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) < PUBLISHED
    assert Recipe(tmp_path, replace(quick(), people=10_024)).room() - needed == pytest.approx(10_000 * 63_000, rel=0.02)


def test_no_round_is_refused() -> None:
    with pytest.raises(ConfigError, match="rounds must be 1 or more, got 0"):
        replace(quick(), rounds=0)
