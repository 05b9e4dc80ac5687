"""Where a job's results go: checked before the work begins, and never the reason why finished work is lost."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..whole_file import write_whole


@dataclass
class ResultsFolder:
    """A folder for results, and a temporary one for those that cannot be written there after all."""

    path: Path
    written: list[Path] = field(default_factory=list)
    """what there is so far, in order"""
    _rescue: Path | None = None
    _problems: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path | str) -> ResultsFolder:
        """Make the folder and see that it can be written.

        Raises:
            OutputError: it cannot.
        """
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path) as file:
                file.write(b"1")
                file.flush()
        except OSError as error:
            raise OutputError(
                f"{path}: cannot be written ({error.strerror or error}), but the results belong there; choose another "
                "folder, or free some space"
            ) from error
        return cls(path)

    def keep(self, name: str, write: Callable[[Path], Any]) -> Path:
        """Write one result by `write(path)`, in the temporary folder if it cannot be written here.

        Returns:
            Where it is.

        Raises:
            OutputError: it could be written in neither.
        """
        try:
            write(self.path / name)
            self.written.append(self.path / name)
        except (OutputError, OSError) as error:
            if self._rescue is None:
                self._rescue = Path(tempfile.mkdtemp(prefix="hyperdream-"))
            self._problems.append(str(error))
            try:
                write(self._rescue / name)
            except OSError as second:
                raise OutputError(
                    f"{self.path / name}: cannot be written, nor can {self._rescue / name} ({second}); free some space"
                ) from second
            self.written.append(self._rescue / name)
        return self.written[-1]

    def keep_json(self, name: str, data: Mapping[str, Any]) -> Path:
        """Write a report, whole or not at all."""
        return self.keep_text(name, json.dumps(data, indent=2, ensure_ascii=False) + "\n")

    def keep_text(self, name: str, text: str) -> Path:
        """Write a text, whole or not at all."""
        return self.keep(name, lambda path: write_whole(path, text))

    def close(self) -> None:
        """Say so if anything had to go to the temporary folder.

        Raises:
            OutputError: it had; says why, and where the results are.
        """
        if self._rescue is not None:
            raise OutputError(f"{self._problems[0]}; what could not be written there is in {self._rescue}")
