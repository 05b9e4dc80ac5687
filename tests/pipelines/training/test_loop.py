"""The training loop: its learning rate, and that stopping, resuming and taking further lose nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hyperdream_core.errors import ConfigError, FileFormatError
from hyperdream_core.formats.container import read_container, write_container
from hyperdream_core.pipelines.training.loop import (
    CHECKPOINT,
    TrainingConfig,
    launch,
    learning_rate,
    step_generator,
    train,
)

CONFIG = TrainingConfig(steps=6, warmup=2, learning_rate=0.1, save_every=4)


class Line(nn.Module):
    """Square error of a line through the batch's points."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(()))

    def forward(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        return (self.slope * batch - 2 * batch).square().mean()


def draw(generator: torch.Generator) -> Tensor:
    return torch.rand(8, generator=generator)


def slope(checkpoint: Path, cycles: int = 2) -> float:
    line = Line()
    train(line, draw, CONFIG, checkpoint, cycles=cycles)
    return float(line.slope.detach())


def test_each_cycle_warms_up_to_its_peak_and_falls() -> None:
    rates = [learning_rate(step, CONFIG) for step in range(12)]
    assert rates[0] == pytest.approx(0.05)
    assert max(rates[:6]) == pytest.approx(0.1)
    assert max(rates[6:]) == pytest.approx(0.07)
    assert rates[5] < rates[6] < rates[7]


def test_a_finished_training_is_taken_further_as_if_it_had_never_ended(tmp_path: Path) -> None:
    at_once = slope(tmp_path / "at-once")
    one_cycle = slope(tmp_path / "in-two", cycles=1)
    assert slope(tmp_path / "in-two") == at_once
    assert abs(2 - at_once) < abs(2 - one_cycle) < 2


@pytest.mark.parametrize("stop", [3, 6, 8])
def test_a_stopped_training_ends_with_the_same_weights(stop: int, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop_once(step: int, steps: int) -> None:
        assert steps == 12
        if step == stop:
            raise Stop

    with pytest.raises(Stop):
        train(Line(), draw, CONFIG, tmp_path / "stopped", stop_once, cycles=2)
    assert slope(tmp_path / "stopped") == slope(tmp_path / "at-once")


def test_the_checkpoint_of_a_longer_training_is_refused(tmp_path: Path) -> None:
    slope(tmp_path / "checkpoint")
    with pytest.raises(ConfigError, match="checkpoint holds 12 steps, 6 are asked for; ask for more, or delete it"):
        slope(tmp_path / "checkpoint", cycles=1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight/slope": torch.zeros(2)}, r"'weight/slope' has the shape \(2,\), but this training needs \(\)"),
        ({"weight/slope": None}, "lacks tensor 'weight/slope'"),
        ({"exp_avg/slope": None}, "lacks tensor 'exp_avg/slope'"),
        ({"weight/other": torch.zeros(())}, "has an unknown tensor 'weight/other'"),
        ({"step": torch.tensor([-3.0])}, "holds step -3, but a whole number"),
        ({"step": torch.tensor([2.5])}, "holds step 2.5, but a whole number"),
    ],
)
def test_an_altered_checkpoint_is_refused(tmp_path: Path, change: dict[str, Tensor | None], words: str) -> None:
    slope(tmp_path / "checkpoint", cycles=1)
    metadata, tensors = read_container(tmp_path / "checkpoint", CHECKPOINT, 1)
    altered = {name: value for name, value in {**tensors, **change}.items() if value is not None}
    own = {name: value for name, value in metadata.items() if name not in ("kind", "version")}
    write_container(tmp_path / "checkpoint", CHECKPOINT, 1, own, altered)
    with pytest.raises(FileFormatError, match=words):
        slope(tmp_path / "checkpoint")


def _train_in_a_process(folder: Path) -> None:
    """Where `launch` puts it: gradients are averaged, and the main process saves."""
    slope(folder / "checkpoint", cycles=1)


# Python 3.12 warns of a fork beside threads, which torch has started.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_processes_average_their_gradients(tmp_path: Path) -> None:
    for folder, processes in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        launch(_train_in_a_process, (tmp_path / folder,), processes)
    one, two = (read_container(tmp_path / folder / "checkpoint", CHECKPOINT, 1)[1] for folder in ("one", "two"))
    assert float(two["step"]) == CONFIG.steps
    # By hand: each step's gradient is the mean over what processes 0 and 1 draw.
    line = Line()
    optimizer = torch.optim.AdamW(line.parameters(), lr=CONFIG.learning_rate, betas=CONFIG.betas, weight_decay=0.01)
    for step in range(CONFIG.steps):
        losses = [line(draw(step_generator(CONFIG.seed, step, process)), None) for process in (0, 1)]
        (sum(losses) / 2).backward()
        torch.nn.utils.clip_grad_norm_(line.parameters(), CONFIG.clip)
        optimizer.param_groups[0]["lr"] = learning_rate(step, CONFIG)
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(two["weight/slope"], line.slope.detach())
    assert not torch.equal(one["weight/slope"], two["weight/slope"])
