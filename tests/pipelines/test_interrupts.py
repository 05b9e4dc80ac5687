"""Ctrl-C and SIGTERM at any moment: whole steps stay, and going on ends with the bytes of a run that nobody stopped."""

from __future__ import annotations

import os
import random
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hyperdream_core.identity import Identity
from hyperdream_core.pipelines.diffusers.diffusers_base import DiffusersBase
from hyperdream_core.pipelines.polishing.polish import polish
from hyperdream_core.pipelines.polishing.polish_config import PolishConfig
from hyperdream_core.pipelines.training.loop import TrainingConfig, train
from hyperdream_core.pipelines.undivided import ended_like_stopped, undivided

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs POSIX signals")
CONFIG = TrainingConfig(steps=12, warmup=2, save_every=5)
SHORT = PolishConfig(steps=3, batch=1, rank=1, crops=0, file_rank=0, save_every=100)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ParameterList(torch.randn(8, 8, generator=generator) / 3 for _ in range(20))

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(x @ layer)
        return x.square().mean()


def draw_batch(generator: torch.Generator) -> Tensor:
    return torch.rand(4, 8, generator=generator)


def ask_for_an_end(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def _handlers_stay() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_undivided_comes_to_its_end_first(number: int) -> None:
    reached = list[str]()
    with pytest.raises(KeyboardInterrupt), ended_like_stopped():
        with undivided():
            ask_for_an_end(number)
            reached.append("the end")
        reached.append("never")
    assert reached == ["the end"]


def test_a_handler_of_somebody_else_is_left_alone() -> None:
    own = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        before = signal.getsignal(signal.SIGTERM)
        with ended_like_stopped():
            assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGTERM, own)


def test_threads_other_than_the_main_one_are_left_alone() -> None:
    def elsewhere() -> None:
        with ended_like_stopped(), undivided():
            done.append(True)

    done = list[bool]()
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert done


def bytes_of(net: nn.Module) -> bytes:
    return b"".join(weight.detach().numpy().tobytes() for weight in net.parameters())


def trained(checkpoint: Path, cycles: int = 1) -> bytes:
    net = Net()
    train(net, draw_batch, CONFIG, checkpoint, cycles=cycles)
    return bytes_of(net)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupts_at_random_moments_of_a_training_change_no_byte(number: int, tmp_path: Path) -> None:
    # In a process of its own: what an interrupt leaves half done elsewhere, such as torch's switch of gradients, ends
    # with the process, as it does after a command.
    child = os.fork()
    if child == 0:
        try:
            _interrupt_trainings(number, tmp_path)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _interrupt_trainings(number: int, folder: Path) -> None:
    whole, dice, interrupted = trained(folder / "whole"), random.Random(1), 0
    signal.signal(signal.SIGALRM, lambda *_: ask_for_an_end(number))
    for run in range(5):
        for attempt in range(20):
            try:
                signal.setitimer(signal.ITIMER_REAL, dice.uniform(0.001, 0.06) if attempt < 3 else 0)
                with ended_like_stopped():
                    found = trained(folder / str(run))
                break
            except KeyboardInterrupt:
                interrupted += 1
                torch.set_grad_enabled(True)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        assert found == whole
    assert interrupted


def stop_in(function: Callable[..., object], call: int, how: Callable[[], None]) -> Callable[..., object]:
    """The function, with something that happens in one of its calls."""
    calls = list[int]()

    def wrapped(*arguments: object, **named: object) -> object:
        calls.append(1)
        result = function(*arguments, **named)
        if len(calls) == call:
            how()
        return result

    return wrapped


def coefficients(identity: Identity) -> bytes:
    tensors = [tensor for one in identity.coefficients.values() for tensor in (one.down, one.up)]
    return b"".join(tensor.numpy().tobytes() for tensor in tensors)


def raise_interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("where", "how", "steps"),
    [
        ("optimizer", ask_for_an_end, 2),  # heeded after the step
        ("gradients", raise_interrupt, 1),  # from elsewhere: the step has not begun
        ("optimizer", raise_interrupt, 1),  # from elsewhere: the step is half done, and taken back
    ],
)
def test_a_polishing_that_is_stopped_keeps_whole_steps_and_goes_on_to_the_same_bytes(
    where: str,
    how: Callable[[], None],
    steps: int,
    base: DiffusersBase,
    references: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from hyperdream_core.pipelines.polishing import polish as module

    references = references[:1]
    checkpoint = tmp_path / "checkpoint"
    with monkeypatch.context() as patch:
        if where == "gradients":
            patch.setattr(module, "_add_gradients", stop_in(module._add_gradients, 2, how))
        else:
            patch.setattr(torch.optim.AdamW, "step", stop_in(torch.optim.AdamW.step, 2, how))
        stopped = polish(base, references, config=SHORT, checkpoint=checkpoint)
    assert stopped.cancelled
    assert len(stopped.losses) == steps
    assert checkpoint.exists() == (how is ask_for_an_end or where == "gradients")
    whole = polish(base, references, config=SHORT)
    assert coefficients(polish(base, references, config=SHORT, checkpoint=checkpoint).identity) == coefficients(
        whole.identity
    )
    assert not checkpoint.exists()
    assert stopped.losses == whole.losses[:steps]
