"""What a command says to people and to machines, and the files that it has already written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import printable

if TYPE_CHECKING:
    from ..identity import Identity
    from ..pipelines.results_folder import ResultsFolder


_LONGEST_SENTENCE = 4000


@dataclass(frozen=True)
class Outcome:
    """What a finished command reports."""

    data: Mapping[str, Any]
    """JSON values, for --json"""
    text: str
    """for people"""
    ok: bool = True
    """False for an answer that is a refusal, such as that of `inspect`"""
    stopped: bool = False
    """the user stopped it, and this is the best so far"""


@dataclass
class Console:
    """Where a command speaks: sentences and bars on the error stream; and what it has written so far."""

    as_json: bool = False
    results: list[ResultsFolder] = field(default_factory=list)
    on_stop: str = ""
    """where the work of a job that can be resumed is kept, should the user stop it"""
    inputs: tuple[Path, ...] = ()
    """files and folders that the command line names to be read"""

    def say(self, text: str) -> None:
        """A sentence for people."""
        write_line(sys.stderr, printable(text, _LONGEST_SENTENCE))

    def note(self, notes: Sequence[str]) -> None:
        """Remarks on something that was read or done in another way than one might think."""
        for text in notes:
            self.say(f"note: {text}")

    @contextmanager
    def progress(self, label: str, unit: str = "step") -> Iterator[Callable[[int, int], None]]:
        """A progress bar, hidden where only a machine listens."""
        from ..pipelines.progress import tqdm_progress

        with tqdm_progress(label, unit, hidden=self.as_json) as progress:
            yield progress

    def open_results(self, path: Path, names: Iterable[str] = (), room: int = 0) -> ResultsFolder:
        """The folder for results, whose contents are named should the command fail or be stopped later on.

        Args:
            path: of the folder.
            names: of the results, as far as they are known.
            room: bytes that they will take, about.

        Raises:
            OutputError: it cannot be written, or a result would replace an input.
        """
        from ..pipelines.results_folder import ResultsFolder

        self.results.append(ResultsFolder.open(path, names, self.inputs, room))
        return self.results[-1]

    @property
    def written(self) -> list[Path]:
        """Files written so far."""
        return [path for folder in self.results for path in folder.written]


def write_line(stream: TextIO, text: str) -> None:
    """Write a line of any text to a stream of any encoding; what that cannot write is escaped."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


def identity_outcome(path: Path, identity: Identity, facts: Mapping[str, Any], stopped: bool = False) -> Outcome:
    """What a command reports that has written an identity."""
    size = path.stat().st_size
    data = {"file": str(path), "bytes": size, "family": identity.family, "rank": identity.rank, **facts}
    return Outcome(data, f"{path} ({size / 1000:,.0f} KB, rank {identity.rank}, {identity.family})", stopped=stopped)
