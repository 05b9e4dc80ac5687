"""Progress of long jobs: a callback between steps, through which a host shows a bar and cancels by raising."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..models.one_thread import while_waiting

Progress = Callable[[int, int], None]
"""Called as progress(step, total) between steps, and as progress(total, total) at the end."""


def no_progress(step: int, total: int) -> None:
    """Say nothing."""


@contextmanager
def also_while_waiting(progress: Progress, steps: int | None = None) -> Iterator[Progress]:
    """The same progress, repeated while this thread waits for another one's use of the base: a host cancels there.

    Args:
        progress: what is called.
        steps: of the whole job, to say that it stands at 0 before anything has been said.
    """
    said = [] if steps is None else [(0, steps)]

    def remembered(step: int, total: int) -> None:
        said[:] = [(step, total)]
        progress(step, total)

    def again() -> None:
        if said:
            progress(*said[0])

    with while_waiting(again):
        yield remembered


@contextmanager
def tqdm_progress(label: str, unit: str = "step", hidden: bool = False) -> Iterator[Progress]:
    """A bar on the terminal's error stream, closed and left standing at the end.

    Args:
        label: what is being done.
        unit: what is counted.
        hidden: show nothing, for machines that read the output.
    """
    from tqdm import tqdm

    bar = tqdm(desc=label, unit=unit, disable=hidden, leave=True)

    def progress(step: int, total: int) -> None:
        if bar.total != total:
            bar.reset(total)
        bar.update(step - bar.n)

    try:
        yield progress
    finally:
        bar.close()
