"""A polishing checkpoint is taken whole and of this very job, or refused by name with what to do."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hyperdream_core.bases import get_base
from hyperdream_core.errors import ConfigError, FileFormatError
from hyperdream_core.formats.container import read_tensors, write_tensors
from hyperdream_core.pipelines.polishing.polish_checkpoint import PolishCheckpoint, PolishRun
from hyperdream_core.pipelines.polishing.trainable_adapters import TrainableAdapters, without_effect

Change = Callable[[dict[str, str], dict[str, Tensor]], object]


def begun(steps: int = 0) -> PolishRun:
    """A run of one row after so many steps towards nothing in particular."""
    family = get_base("miniature")
    like = without_effect(family, [None], ("attention", 5, 6))
    generator = torch.Generator().manual_seed(1)
    adapters = TrainableAdapters(family, like, 1, [None], generator, torch.device("cpu"))
    run = PolishRun(adapters, torch.optim.AdamW(adapters.parameters(), lr=0.1), [], [], torch.full((1,), math.inf))
    for parameter in adapters.parameters():
        parameter.requires_grad_(True)
    for _ in range(steps):
        sum(parameter.square().sum() for parameter in adapters.parameters()).backward()  # type: ignore[union-attr]
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.losses.append(torch.ones(1))
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("polish") / "job.safetensors"
    PolishCheckpoint(path, "a job").save(begun(3), 3)
    return path


def altered(whole: Path, path: Path, change: Change) -> PolishCheckpoint:
    metadata, tensors = read_tensors(whole)
    change(metadata, tensors)
    write_tensors(path, metadata, tensors)
    return PolishCheckpoint(path, "a job")


def test_a_whole_one_is_taken(whole: Path) -> None:
    run, wanted = begun(), begun(3)
    assert PolishCheckpoint(whole, "a job").load(run, 5) == 3 and run.losses == [torch.ones(1)] * 3
    for ours, theirs in zip(run.adapters.parameters(), wanted.adapters.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m, t: t.update(step=torch.tensor([-3.0])), r"has step .*-3.*, but a whole number in 0\.\.5"),
        (lambda m, t: t.update(step=torch.tensor([2.5])), "has step"),
        (lambda m, t: t.update(step=torch.tensor([1e30])), "has step"),
        (lambda m, t: t.update(step=torch.zeros(0)), "has step"),
        (lambda m, t: t.update(step=torch.zeros(2)), "has step"),
        (lambda m, t: t.update(step=torch.tensor([4.0])), "tensor 'losses'"),
        (lambda m, t: t.pop("step"), "has step"),
        (lambda m, t: t.update(looks_since=torch.tensor([-1.0])), "has looks_since"),
        (lambda m, t: t.pop("losses"), "lacks tensor 'losses'"),
        (lambda m, t: t.update(losses=torch.ones(3, 2)), "tensor 'losses'"),
        (lambda m, t: t.update(best_loss=torch.ones(2)), "tensor 'best_loss'"),
        (lambda m, t: t.update(best_loss=-torch.ones(1)), "numbers below 0"),
        (lambda m, t: t.pop("parameter.0"), "lacks tensor 'parameter.0'"),
        (lambda m, t: t.update({"parameter.0": t["parameter.0"][:1]}), "tensor 'parameter.0'"),
        (lambda m, t: t.update({"parameter.0": t["parameter.0"].half()}), "torch.float16"),
        (lambda m, t: t.update({"exp_avg_sq.0": t["exp_avg_sq.0"] - 1e3}), "numbers below 0"),
        (lambda m, t: t.pop("exp_avg.1"), "lacks tensor 'exp_avg.1'"),
        (lambda m, t: t.update({"best.0": t["parameter.0"].clone()}), "lacks tensor 'best.1'"),
        (lambda m, t: t.update(foreign=torch.ones(1)), "has an unknown tensor 'foreign'"),
        (lambda m, t: m.update(kind="hyperdream-identity"), "Remove it to polish from the beginning"),
    ],
)
def test_an_altered_one_is_refused_with_what_to_do_and_leaves_the_run_as_it_was(
    whole: Path, tmp_path: Path, change: Change, words: str
) -> None:
    run = begun()
    before = [parameter.detach().clone() for parameter in run.adapters.parameters()]
    with pytest.raises(FileFormatError, match=words) as caught:
        altered(whole, tmp_path / "job.safetensors", change).load(run, 5)
    assert "Remove it to polish from the beginning" in str(caught.value)
    assert all(torch.equal(one, two) for one, two in zip(before, run.adapters.parameters(), strict=True))
    assert not run.losses and not run.optimizer.state


def test_one_of_another_job_or_of_more_steps_is_refused(whole: Path) -> None:
    with pytest.raises(ConfigError, match="of another job"):
        PolishCheckpoint(whole, "another").load(begun(), 5)
    with pytest.raises(FileFormatError, match=r"in 0\.\.2"):
        PolishCheckpoint(whole, "a job").load(begun(), 2)
