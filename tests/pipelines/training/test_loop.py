"""The training loop: its learning rate, and that stopping, resuming and taking further lose nothing."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hyperdream_core.errors import ConfigError, FileFormatError, HyperDreamError, OutputError
from hyperdream_core.formats.container import read_container
from hyperdream_core.pipelines.training import launch as launching
from hyperdream_core.pipelines.training import loop
from hyperdream_core.pipelines.training.checkpoint import CHECKPOINT
from hyperdream_core.pipelines.training.loop import (
    TrainingConfig,
    is_main_process,
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


def test_every_step_is_announced_before_it_is_taken(tmp_path: Path) -> None:
    taken: list[int] = []

    class Told(Line):
        at = -1

        def forward(self, batch: Tensor, generator: torch.Generator) -> Tensor:
            taken.append(self.at)
            return super().forward(batch, generator)

    line = Told()
    train(line, draw, CONFIG, tmp_path / "checkpoint", on_step=lambda step, steps: setattr(line, "at", step))
    assert taken == list(range(CONFIG.steps))


def test_without_a_fused_kernel_for_the_device_the_optimizer_is_the_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused, plain = slope(tmp_path / "fused"), torch.optim.AdamW

    def without(parameters: object, **settings: object) -> torch.optim.AdamW:
        if settings.get("fused"):
            raise RuntimeError("`fused=True` requires all the params to be on supported devices: ['cuda']")
        return plain(parameters, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim, "AdamW", without)
    assert slope(tmp_path / "plain") == pytest.approx(fused, abs=1e-5)


def test_the_checkpoint_of_a_longer_training_is_refused(tmp_path: Path) -> None:
    slope(tmp_path / "checkpoint")
    with pytest.raises(ConfigError, match="checkpoint holds 12 steps, 6 are asked for; ask for more, or delete it"):
        slope(tmp_path / "checkpoint", cycles=1)


def test_an_interrupt_amid_an_update_is_heeded_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    average, calls = loop._average, []

    def average_with_an_interrupt(*arguments: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        average(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_average", average_with_an_interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(Line(), draw, CONFIG, tmp_path / "stopped", cycles=2)
    assert float(read_container(tmp_path / "stopped", CHECKPOINT, 1)[1]["step"]) == 3
    assert slope(tmp_path / "stopped") == slope(tmp_path / "at-once")


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError])
def test_a_step_that_fails_before_its_update_is_taken_again(failure: type[BaseException], tmp_path: Path) -> None:
    class Failing(Line):
        calls = 0

        def forward(self, batch: Tensor, generator: torch.Generator) -> Tensor:
            self.calls += 1
            if self.calls == 9:
                raise failure
            return super().forward(batch, generator)

    with pytest.raises(failure):
        train(Failing(), draw, CONFIG, tmp_path / "stopped", cycles=2)
    assert float(read_container(tmp_path / "stopped", CHECKPOINT, 1)[1]["step"]) == 8
    assert slope(tmp_path / "stopped") == slope(tmp_path / "at-once")


def test_an_update_that_fails_half_way_is_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    average, calls = loop._average, []

    def fail_at_the_sixth(*arguments: object) -> None:
        calls.append(1)
        if len(calls) == 6:
            raise MemoryError
        average(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_average", fail_at_the_sixth)
        with pytest.raises(MemoryError):
            train(Line(), draw, CONFIG, tmp_path / "stopped", cycles=2)
    assert float(read_container(tmp_path / "stopped", CHECKPOINT, 1)[1]["step"]) == CONFIG.save_every
    assert slope(tmp_path / "stopped") == slope(tmp_path / "at-once")


def test_an_interrupt_while_the_checkpoint_is_written_repeats_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hyperdream_core import whole_file

    flush, calls = whole_file._flush, []

    def flush_with_an_interrupt(path: Path) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        flush(path)

    with monkeypatch.context() as patch:
        patch.setattr(whole_file, "_flush", flush_with_an_interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(Line(), draw, CONFIG, tmp_path / "stopped", cycles=2)
    assert slope(tmp_path / "stopped") == slope(tmp_path / "at-once")
    assert (tmp_path / "stopped").read_bytes() == (tmp_path / "at-once").read_bytes()


@pytest.mark.parametrize("full_at", range(1, 4))
def test_a_disk_that_fills_up_leaves_the_last_checkpoint(
    full_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hyperdream_core import whole_file

    flush, calls = whole_file._flush, []

    def full(path: Path) -> None:
        calls.append(1)
        if len(calls) >= full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(path)

    with monkeypatch.context() as patch:
        patch.setattr(whole_file, "_flush", full)
        with pytest.raises(OutputError, match="No space left on device"):
            train(Line(), draw, CONFIG, tmp_path / "stopped", cycles=2)
    assert (tmp_path / "stopped").exists() == (full_at > 1)
    assert slope(tmp_path / "stopped") == slope(tmp_path / "at-once")
    assert (tmp_path / "stopped").read_bytes() == (tmp_path / "at-once").read_bytes()


@pytest.mark.parametrize("kind", ["folder", "link", "file above"])
def test_a_checkpoint_that_could_not_be_written_is_refused_before_the_first_step(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "checkpoint"
    if kind == "folder":
        place.mkdir()
    elif kind == "link":
        place.symlink_to(tmp_path / "nowhere")
    else:
        place.write_text("a file")
        place = place / "checkpoint"

    def refuse(step: int, steps: int) -> None:
        raise AssertionError("began")

    with pytest.raises((OutputError, FileFormatError), match="checkpoint"):
        train(Line(), draw, CONFIG, place, refuse)


def test_what_is_said_of_the_last_losses_does_not_depend_on_pauses(tmp_path: Path) -> None:
    at_once = train(Line(), draw, CONFIG, tmp_path / "at-once", cycles=2)
    train(Line(), draw, CONFIG, tmp_path / "in-two", cycles=1)
    assert train(Line(), draw, CONFIG, tmp_path / "in-two", cycles=2) == at_once
    assert train(Line(), draw, CONFIG, tmp_path / "in-two", cycles=2) == at_once
    assert len(at_once) == 12


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


def _refuse_in_a_process(folder: Path) -> None:
    slope(folder / "checkpoint" / "under a file", cycles=1)


def _die_in_a_process(folder: Path) -> None:
    if is_main_process():
        os.kill(os.getpid(), signal.SIGKILL)
    slope(folder / "checkpoint", cycles=1)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_what_one_of_two_processes_refuses_is_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_text("a file")
    with pytest.raises(OutputError, match="under a file: cannot be written"):
        launch(_refuse_in_a_process, (tmp_path,), 2)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_killed_process_of_two_is_said_and_the_training_goes_on(tmp_path: Path) -> None:
    with pytest.raises(HyperDreamError, match="one of the 2 processes was ended from outside"):
        launch(_die_in_a_process, (tmp_path,), 2)
    launch(_train_in_a_process, (tmp_path,), 2)
    assert float(read_container(tmp_path / "checkpoint", CHECKPOINT, 1)[1]["step"]) == CONFIG.steps


def _train_slowly(folder: Path) -> None:
    def wait(step: int, steps: int) -> None:
        (folder / "began").write_text(str(step))
        time.sleep(0.1 if step < 4 else 20)

    train(Line(), draw, CONFIG, folder / "checkpoint", wait if folder.name == "stopped" else None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_where_only_the_parent_of_two_processes_is_stopped_they_stop_and_save(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "GRACE", 0.3)
    for name in ("stopped", "at-once"):
        (tmp_path / name).mkdir()
    parent = os.fork()
    if not parent:
        code = 1
        try:
            launch(_train_slowly, (tmp_path / "stopped",), 2)
        except KeyboardInterrupt:
            code = 130
        finally:
            os._exit(code)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (tmp_path / "stopped" / "began").exists():
        time.sleep(0.05)
    while time.monotonic() < deadline and (tmp_path / "stopped" / "began").read_text() != "4":
        time.sleep(0.05)
    os.kill(parent, number)
    assert os.waitstatus_to_exitcode(os.waitpid(parent, 0)[1]) == 130
    checkpoint = tmp_path / "stopped" / "checkpoint"
    assert float(read_container(checkpoint, CHECKPOINT, 1)[1]["step"]) == 4
    launch(_train_in_a_process, (tmp_path / "stopped",), 2)
    launch(_train_in_a_process, (tmp_path / "at-once",), 2)
    assert checkpoint.read_bytes() == (tmp_path / "at-once" / "checkpoint").read_bytes()
