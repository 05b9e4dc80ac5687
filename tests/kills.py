"""Work that is ended at bad moments: commands in processes of their own, killed by a signal; and disks that are full.

`Commands` forks every command from one process that has loaded all libraries, so that dozens of kills take seconds
each, not the time of loading torch. The same is of use to whatever else can be told as words of a command line.
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import pytest

from hyperdream_core import whole_file

ROOT = Path(__file__).parents[1]
SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """exit code; below 0 the number of the signal that ended it"""
    said: str
    """on both streams"""
    seconds: float


class Commands:
    """Runs command lines of `hyperdream`, each in a fresh copy of one process."""

    def __enter__(self) -> Commands:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.kills"], cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(60)
        self._server.stdout.close()

    def run(
        self, words: Sequence[object], folder: Path, after: float | None = None, with_signal: int = signal.SIGKILL
    ) -> Ended:
        """Run a command in a folder to its end, or kill it `after` so many seconds."""
        assert self._server.stdin is not None and self._server.stdout is not None
        log = folder.parent / f"{folder.name}.log"
        job = {"words": [str(word) for word in words], "folder": str(folder), "log": str(log)}
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        process, began = int(self._server.stdout.readline()), perf_counter()
        timer = threading.Timer(after or 0.0, _kill, (process, with_signal))
        if after is not None:
            timer.start()
        code = int(self._server.stdout.readline())
        timer.cancel()
        timer.join() if after is not None else None
        return Ended(code, log.read_text("utf-8", "replace"), perf_counter() - began)


@dataclass
class Story:
    """What came of one command that was killed again and again until it ran to its end."""

    ends: list[Ended]

    @property
    def kills(self) -> int:
        """Runs that a signal ended, or stopped."""
        return len(self.ends) - 1


def killed_and_resumed(
    commands: Commands, words: Sequence[object], folder: Path, seconds: float, chance: random.Random, kills: int
) -> Story:
    """Kill a command at random moments of the `seconds` it takes, up to `kills` times, and then let it end.

    Every end but the last is by a signal, by Ctrl-C's exit code, or in time; no end has a traceback.
    """
    ends: list[Ended] = []
    for _ in range(kills):
        how = chance.choice(SIGNALS)
        ends.append(commands.run(words, folder, chance.uniform(0, seconds), how))
        assert "Traceback" not in ends[-1].said, ends[-1].said
        assert ends[-1].code in (0, 130, -how), ends[-1]
        if ends[-1].code == 0:
            return Story(ends)
    ends.append(commands.run(words, folder))
    assert ends[-1].code == 0, ends[-1].said
    return Story(ends)


@contextmanager
def full_disk(
    monkeypatch: pytest.MonkeyPatch, at: int, is_full: Callable[[Path], bool] = lambda _: True
) -> Iterator[list[Path]]:
    """The disk is full from the `at`-th file that is written on, counted from 0; gives what could not be written.

    Args:
        is_full: of a path, whether it lies on that disk.
    """
    refused: list[Path] = []
    written, flush = 0, whole_file._flush

    def flushed(path: Path) -> None:
        nonlocal written
        if is_full(path):
            written += 1
            if written > at:
                refused.append(path)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        flush(path)

    with monkeypatch.context() as patched:
        patched.setattr(whole_file, "_flush", flushed)
        yield refused


def _kill(process: int, number: int) -> None:
    with suppress(ProcessLookupError):  # It was quicker.
        os.kill(process, number)


def _serve() -> None:
    """One JSON job per line of the input; its process and then its exit code on the output."""
    import diffusers  # noqa: F401
    import torch
    import transformers  # noqa: F401

    from hyperdream_core.cli import command_list, main  # noqa: F401
    from hyperdream_core.pipelines import personalize  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if not child:
            _become(main, job)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become(main: Callable[[Sequence[str]], int], job: dict[str, str]) -> None:
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.chdir(job["folder"])
    code = 1
    try:
        code = main(job["words"])
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
