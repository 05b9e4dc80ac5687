"""A training's checkpoint: nothing that was altered, damaged or begun in another way is taken for its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hyperdream_core.errors import ConfigError, FileFormatError, HyperDreamError
from hyperdream_core.formats.container import read_container, write_container
from hyperdream_core.pipelines.training.checkpoint import CHECKPOINT
from hyperdream_core.pipelines.training.loop import TrainingConfig, train

CONFIG = TrainingConfig(steps=6, warmup=2, learning_rate=0.1, save_every=4)
DATA = {"people": 3, "base": {"steps": 7}}


class Line(nn.Module):
    """Square error of a line through the batch's points."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(()))

    def forward(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        return (self.slope * batch - 2 * batch).square().mean()


def learn(checkpoint: Path, config: TrainingConfig = CONFIG, cycles: int = 1, **data: object) -> float:
    line = Line()
    train(line, lambda g: torch.rand(8, generator=g), config, checkpoint, cycles=cycles, made_by={**DATA, **data})
    return float(line.slope.detach())


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    learn(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def rewrite(path: Path, metadata: dict[str, str | None], change: dict[str, Tensor | None]) -> None:
    own, tensors = read_container(path, CHECKPOINT, 1)
    altered = {name: value for name, value in {**tensors, **change}.items() if value is not None}
    kept = {name: value for name, value in {**own, **metadata}.items() if name not in ("kind", "version")}
    write_container(path, CHECKPOINT, 1, {name: value for name, value in kept.items() if value is not None}, altered)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight/slope": torch.zeros(2)}, r"'weight/slope' has the shape \(2,\), but this training needs \(\)"),
        ({"weight/slope": None}, "lacks tensor 'weight/slope'"),
        ({"exp_avg/slope": None}, "lacks tensor 'exp_avg/slope'"),
        ({"weight/other": torch.zeros(())}, "has an unknown tensor 'weight/other'"),
        ({"weight/slope": torch.zeros((), dtype=torch.float16)}, "'weight/slope' is rounded to torch.float16"),
        ({"step": torch.tensor([-3.0])}, "holds step -3, but a whole number"),
        ({"step": torch.tensor([2.5])}, "holds step 2.5, but a whole number"),
        ({"step": torch.zeros(2)}, "'step' has the shape"),
        ({"step/slope": torch.tensor(7.0)}, "is none that 6 steps lead to"),
        ({"step/slope": torch.tensor(0.5)}, "is none that 6 steps lead to"),
        ({"exp_avg_sq/slope": torch.tensor(-1.0)}, "is none that 6 steps lead to"),
        ({"losses": torch.zeros(101)}, "'losses' has the shape"),
        ({"losses": torch.zeros(3, 3)}, "'losses' has the shape"),
    ],
)
def test_altered_numbers_are_refused(checkpoint: Path, change: dict[str, Tensor | None], words: str) -> None:
    rewrite(checkpoint, {}, change)
    with pytest.raises(FileFormatError, match=words):
        learn(checkpoint, cycles=2)


@pytest.mark.parametrize(
    ("again", "words"),
    [
        (lambda path: learn(path, people=4), r"was begun with people 3 \(now 4\)"),
        (lambda path: learn(path, base={"steps": 8}), r"was begun with base.steps 7 \(now 8\)"),
        (lambda path: learn(path, replace(CONFIG, learning_rate=0.2)), r"training.learning_rate 0.1 \(now 0.2\)"),
        (lambda path: learn(path, replace(CONFIG, steps=12)), r"training.steps 6 \(now 12\)"),
        (lambda path: learn(path, more=1), r"more null \(now 1\)"),
    ],
)
def test_other_settings_are_refused_by_name(checkpoint: Path, again: Callable[[Path], float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        again(checkpoint)


def test_how_often_it_is_saved_may_change(checkpoint: Path, tmp_path: Path) -> None:
    assert learn(checkpoint, replace(CONFIG, save_every=1), cycles=2) == learn(tmp_path / "another", cycles=2)


def test_one_that_says_nothing_of_its_settings_is_an_older_releases_and_goes_on(
    checkpoint: Path, tmp_path: Path
) -> None:
    rewrite(checkpoint, {"made_by": None}, {"losses": None})
    assert learn(checkpoint, cycles=2) == learn(tmp_path / "another", cycles=2)
    assert json.loads(read_container(checkpoint, CHECKPOINT, 1)[0]["made_by"])["people"] == 3


@pytest.mark.parametrize("text", ["", "{", "[" * 20_000, "3", '{"people": NaN}', "9" * 5_000])
def test_settings_that_are_none_are_refused(checkpoint: Path, text: str) -> None:
    rewrite(checkpoint, {"made_by": text}, {})
    with pytest.raises(HyperDreamError, match="checkpoint: "):
        learn(checkpoint, cycles=2)


@pytest.mark.parametrize("damage", ["cut", "empty", "zeros", "foreign", "folder"])
def test_a_damaged_one_is_refused_and_its_place_named(checkpoint: Path, damage: str) -> None:
    whole = checkpoint.read_bytes()
    checkpoint.unlink()
    if damage == "folder":
        checkpoint.mkdir()
    else:
        contents = {"cut": whole[:-9], "empty": b"", "zeros": bytes(len(whole)), "foreign": b"{}" * 99}
        checkpoint.write_bytes(contents[damage])
    with pytest.raises(FileFormatError, match=r"lies at .*checkpoint; remove it"):
        learn(checkpoint, cycles=2)
