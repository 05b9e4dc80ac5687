"""The training loop: its learning rate, and that stopping, resuming and taking further lose nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hyperdream_core.errors import ConfigError
from hyperdream_core.pipelines.training.loop import TrainingConfig, learning_rate, train

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
