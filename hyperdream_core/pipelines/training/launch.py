"""Several processes for one training, started here and ended together; what one refuses is said once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ...errors import BaseMismatchError, Cancelled, ConfigError, HyperDreamError, OutputError
from ..undivided import ended_like_stopped
from .together import StoppedWithAnother

GRACE = 10.0
"""Seconds in which processes that may have been interrupted themselves save what they have."""


def launch(
    function: Callable[..., None], arguments: tuple[Any, ...], processes: int, device: torch.device | str = "cpu"
) -> None:
    """Run `function(*arguments)` in one process, or in several that add up their gradients.

    `accelerate launch` does the same from outside; then ask for one process here.

    Args:
        function: what each process runs.
        arguments: its own.
        processes: how many; on GPUs, one for each.
        device: where they compute; several on GPUs must be the first to use them in this program.

    Raises:
        ConfigError: there are fewer GPUs than processes.
        HyperDreamError: what one of the processes refused, or that one has ended without a word.
    """
    if processes < 1:
        raise ConfigError(f"processes must be 1 or more, got {processes}")
    if processes == 1:
        function(*arguments)
        return
    from accelerate.state import AcceleratorState
    from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

    start = _starter(processes, torch.device(device))
    # Whoever has trained in one process before has left a state that says so, and forked processes would believe it.
    AcceleratorState._reset_state(reset_partial_state=True)
    with tempfile.TemporaryDirectory(prefix="hyperdream-") as folder, _stopping_children(), ended_like_stopped():
        try:
            start(_run_and_report, (function, arguments, folder))
        except (ProcessRaisedException, ProcessExitedException) as error:
            refusal = _first_refusal(Path(folder))
            if refusal is not None:
                raise refusal from error
            if isinstance(error, ProcessExitedException):
                raise HyperDreamError(
                    f"one of the {processes} processes was ended from outside ({error}); run the same again: it goes "
                    "on from the last checkpoint"
                ) from error
            raise


def is_main_process() -> bool:
    """Whether this process, of those started by `launch`, is the one that writes files."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def own_device(device: torch.device) -> torch.device:
    """The device of this process: of several on GPUs each has one of its own."""
    from accelerate import PartialState

    # Whoever asks first decides where Accelerate is at work in this process.
    state = PartialState(cpu=device.type == "cpu")
    if device.type == "cpu":
        return device
    return torch.device(state.device) if state.num_processes > 1 else device


def _starter(processes: int, device: torch.device) -> Callable[[Callable[..., None], tuple[Any, ...]], None]:
    """How Accelerate starts them: on the cores of this machine, or on its GPUs."""
    from accelerate import debug_launcher, notebook_launcher

    if device.type == "cpu":
        return lambda function, arguments: debug_launcher(function, args=arguments, num_processes=processes)
    there = torch.cuda.device_count()
    if device.type != "cuda" or processes > there:
        raise ConfigError(
            f"{processes} processes need as many GPUs, and {there if device.type == 'cuda' else 1} can be used here "
            f"as {device.type}; ask for fewer processes"
        )
    return lambda function, arguments: notebook_launcher(function, args=arguments, num_processes=processes)


@contextmanager
def _stopping_children() -> Iterator[None]:
    """Where this process is interrupted alone, stop those that it has started, and let them save what they have."""
    before = set(multiprocessing.active_children())
    try:
        yield
    except KeyboardInterrupt:
        children = set(multiprocessing.active_children()) - before
        # Ctrl-C on a terminal reaches them too, and another signal would end them while they save.
        for wait, number in ((GRACE, signal.SIGINT), (60.0, signal.SIGTERM)):
            for child in children:
                child.join(wait)
                if child.is_alive() and child.pid:
                    os.kill(child.pid, number)
        for child in children:
            child.join(10.0)
        raise


_REFUSALS: dict[str, type[HyperDreamError]] = {
    one.__name__: one for one in (BaseMismatchError, Cancelled, ConfigError, OutputError)
}
"""What can be raised again from its text alone."""


def _run_and_report(function: Callable[..., None], arguments: tuple[Any, ...], folder: str) -> None:
    """In a process of several: errors of ours reach the parent as a text, which is all that passes between them."""
    try:
        function(*arguments)
    except HyperDreamError as error:
        # The first to refuse is the cause; the others miss it, or repeat it.
        order = "second" if isinstance(error, StoppedWithAnother) else "first"
        text = f"{type(error).__name__} {error}"
        place = Path(folder) / f"{order}-{os.getpid()}.txt"
        place.write_text(text, encoding="utf-8", errors="backslashreplace")
        raise


def _first_refusal(folder: Path) -> HyperDreamError | None:
    for order in ("first", "second"):
        refusals = sorted(folder.glob(f"{order}-*.txt"), key=lambda path: path.stat().st_mtime_ns)
        if refusals:
            kind, _, text = refusals[0].read_text(encoding="utf-8").partition(" ")
            return _REFUSALS.get(kind, HyperDreamError)(text)
    return None
