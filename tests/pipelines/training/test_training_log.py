"""What is known of a training while it runs: its table, its curves and its trackers."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate import tracking

from hyperdream_core.errors import ConfigError, MissingDependencyError
from hyperdream_core.pipelines.training.training_log import TrainingLog, check_trackers, new_trackers

FIGURES = {"right at 0.95": 0.4, "wrong at 0.95": 0.6, "right at 0.5": 0.2}


def run(folder: Path, steps: range, log: TrainingLog | None = None) -> TrainingLog:
    log = log or TrainingLog(folder, every=2)
    for step in steps:
        log.add(step, float(step), 0.1, 2.0 * step, FIGURES if step % 5 == 0 else {})
    log.write()
    return log


def test_a_row_holds_the_mean_loss_since_the_one_before_and_the_figures_of_a_look(tmp_path: Path) -> None:
    run(tmp_path, range(1, 7))
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0] == "step,loss,learning_rate,seconds,right at 0.5,right at 0.95,wrong at 0.95"
    assert lines[1:] == ["2,1.5,0.1,4,,,", "4,3.5,0.1,8,,,", "5,5,0.1,10,0.2,0.4,0.6", "6,6,0.1,12,,,"]
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_a_training_that_goes_on_has_the_table_of_one_that_was_never_stopped(tmp_path: Path) -> None:
    at_once = run(tmp_path / "at-once", range(1, 13))
    # Killed after step 8 was written, with a checkpoint of step 6.
    run(tmp_path / "in-two", range(1, 9))
    again = TrainingLog(tmp_path / "in-two", every=2)
    again.go_on(6)
    run(tmp_path / "in-two", range(7, 13), again)
    assert again.table.read_bytes() == at_once.table.read_bytes()


def test_curves_show_held_out_people_at_the_highest_noise(tmp_path: Path) -> None:
    panels = run(tmp_path, range(1, 11)).panels()
    assert set(panels) == {"all noise levels", "held-out people at noise 0.95"}
    assert panels["held-out people at noise 0.95"] == {"right": [(5, 0.4), (10, 0.4)], "wrong": [(5, 0.6), (10, 0.6)]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "step,loss\n",
        "step,loss,learning_rate,seconds\n1,2\n",
        "step,loss,learning_rate,seconds\n1,nan,1,1\n",
        "step,loss,learning_rate,seconds,evil\n1,1,1,1,1\n",
        "\0",
        '"' * 99,
    ],
)
def test_a_table_that_is_none_is_begun_anew(text: str, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(text)
    log = TrainingLog(tmp_path, every=1)
    log.go_on(9)
    assert log.rows == []


def test_trackers_are_refused_by_name_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [])
    with pytest.raises(ConfigError, match="unknown tracker 'tensorbord'; known: tensorboard, wandb"):
        check_trackers(["tensorbord"])
    with pytest.raises(
        MissingDependencyError, match="'tensorboard' is not installed; add it with: pip install tensorb"
    ):
        check_trackers(["tensorboard"])
    check_trackers([])


def test_trackers_get_the_settings_and_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []

    class Tracker:
        requires_logging_directory = True

        def __init__(self, run: str, logging_dir: Path) -> None:
            told.append((run, logging_dir))

        def store_init_configuration(self, values: dict[str, object]) -> None:
            told.append(values)

        def log(self, values: dict[str, float], step: int) -> None:
            told.append((step, values["loss"]))

        def finish(self) -> None:
            told.append("finished")

    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["wandb"])
    monkeypatch.setattr(tracking, "LOGGER_TYPE_TO_CLASS", {"wandb": Tracker})
    log = TrainingLog(tmp_path, every=2)
    log.trackers = new_trackers(
        ["wandb"], "predictor", tmp_path, {"steps": 4, "network": {"width": 8}, "betas": [1, 2]}
    )
    run(tmp_path, range(1, 5), log)
    log.finish()
    settings = {"steps": 4, "network.width": 8, "betas": "[1, 2]"}
    assert told == [("predictor", tmp_path), settings, (2, 1.5), (4, 3.5), "finished"]
