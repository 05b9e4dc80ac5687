"""Where a job's results go: checked before the work begins, and never the reason why finished work is lost."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..formats.file_names import plain_name
from ..whole_file import remove_left_behind, write_whole
from .before_work import check_folder, check_output, check_outputs


@dataclass
class ResultsFolder:
    """A folder for results, and a temporary one for those that cannot be written there after all."""

    path: Path
    written: list[Path] = field(default_factory=list)
    """what there is so far, in order"""
    inputs: tuple[Path, ...] = ()
    """what the job reads, which no result may replace"""
    _rescue: Path | None = None
    _problems: list[str] = field(default_factory=list)
    _lost: list[str] = field(default_factory=list)

    @classmethod
    def open(
        cls, path: Path | str, names: Iterable[str] = (), inputs: Iterable[Path] = (), room: int = 0
    ) -> ResultsFolder:
        """See that results can be written to a folder; it is made when the first of them is there.

        Args:
            path: of the folder.
            names: of the results, as far as they are known by now.
            inputs: files and folders that the job reads.
            room: bytes that will be written, about.

        Raises:
            OutputError: they cannot, or one of them would replace an input.
        """
        results = cls(Path(path), inputs=tuple(inputs))
        results.check(names, room)
        remove_left_behind(results.path)
        return results

    def check(self, names: Iterable[str] = (), room: int = 0) -> None:
        """The same of results that have become known since.

        Raises:
            OutputError: as `open`.
        """
        check_folder(self.path, room)
        check_outputs([self.path / name for name in names], self.inputs)

    def keep(self, name: str, write: Callable[[Path], Any]) -> Path:
        """Write one result by `write(path)`, in the temporary folder if it cannot be written here.

        What can be written nowhere is remembered for `close`, so that the other results are kept.

        Returns:
            Where it is, or should be.
        """
        path = self.path / name
        try:
            check_output(path, self.inputs)
            self.path.mkdir(parents=True, exist_ok=True)
            write(path)
        except (OutputError, OSError) as error:
            self._problems.append(str(error))
            path = self._kept_elsewhere(name, write) or path
        else:
            self.written.append(path)
        return path

    def keep_json(self, name: str, data: Mapping[str, Any]) -> Path:
        """Write a report, whole or not at all."""
        return self.keep_text(name, json.dumps(data, indent=2, ensure_ascii=False) + "\n")

    def keep_text(self, name: str, text: str) -> Path:
        """Write a text, whole or not at all."""
        return self.keep(name, lambda path: write_whole(path, text))

    def close(self) -> None:
        """Say so if anything had to go to the temporary folder, or could be written nowhere.

        Raises:
            OutputError: it had; says why, and where the results are.
        """
        if self._lost:
            lost, rest = ", ".join(self._lost), f"; the rest is in {self._rescue}" if self._rescue else ""
            raise OutputError(
                f"{lost} could be written neither to {self.path} nor to a temporary folder, and cannot be kept "
                f"({self._problems[0]}){rest}; free some space"
            )
        if self._rescue is not None:
            raise OutputError(f"{self._problems[0]}; what could not be written there is in {self._rescue}")

    def _kept_elsewhere(self, name: str, write: Callable[[Path], Any]) -> Path | None:
        """The result in the temporary folder, under a name that every system takes; None if it is lost."""
        try:
            rescue = self._rescue or Path(tempfile.mkdtemp(prefix="hyperdream-"))
            path = rescue / (plain_name(Path(name).stem) + Path(name).suffix[:20])
            write(path)
        except (OutputError, OSError) as error:
            self._problems.append(str(error))
            self._lost.append(name)
            return None
        self._rescue = rescue
        self.written.append(path)
        return path
