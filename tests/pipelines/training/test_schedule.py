"""The seeds and settings of a training."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from hyperdream_core.errors import ConfigError
from hyperdream_core.pipelines.training.schedule import TrainingConfig, deciding, step_generator


@pytest.mark.parametrize("processes", [2, 64, 65, 200])
@pytest.mark.parametrize("seed", [0, 7, 2**40, -3])
def test_no_two_steps_and_processes_share_their_random_numbers(processes: int, seed: int) -> None:
    # torch's generator on the CPU knows the last 32 bits of its seed and no more.
    assert torch.equal(torch.rand(3, generator=torch.Generator().manual_seed(5)),
                       torch.rand(3, generator=torch.Generator().manual_seed(5 + 2**32)))  # fmt: skip
    known = {
        step_generator(seed, step, process, processes).initial_seed() % 2**32
        for step in range(50)
        for process in range(processes)
    }
    assert len(known) == 50 * processes


def test_up_to_64_processes_see_what_they_have_always_seen() -> None:
    assert step_generator(3, 5, 1, 64).initial_seed() == (3 * 1_000_003 + 5) * 64 + 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch": -1}, "batch and micro_batch must be 0 or more, got -1"),
        ({"micro_batch": 2}, "micro_batch 2 divides a batch, and none is named"),
        ({"save_every": 0}, "save_every must be 1 or more"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TrainingConfig(steps=3, **change)  # type: ignore[arg-type]


def test_how_a_training_is_carried_out_does_not_decide_it() -> None:
    plain = TrainingConfig(steps=3, batch=8)
    how = replace(plain, save_every=1, micro_batch=2, recompute=True, compiler="eager")
    assert deciding(how) == deciding(plain)
    assert deciding(replace(plain, precision="bf16")) != deciding(plain)
    # A checkpoint of an older release names none of the newer settings.
    older = {field.name for field in fields(TrainingConfig)} - {
        "batch", "micro_batch", "precision", "recompute", "compiler", "save_every"
    }  # fmt: skip
    assert deciding(TrainingConfig(steps=3)).keys() == older
