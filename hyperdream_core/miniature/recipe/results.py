"""Results of the recipe: whether one is there, whole, and made by the settings of today.

Beside each lies a record, `NAME.made.json`: the settings, and every file's size and digest. It is written just before
the result takes its place, so that one that was cut, emptied, swapped or half removed is noticed and made anew, and one
that other settings made is refused instead of being built upon.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...config import changed_setting
from ...errors import ConfigError, FileFormatError, OutputError
from ...formats.container import read_names
from ...json_text import MOST_BYTES, read_json
from ...whole_file import make_folder, whole_file, whole_folder, write_whole

Say = Callable[[str], None]
"""Called with a sentence for people."""

_known: dict[Path, Any] = {}
"""what this process has seen to be whole: its settings, sizes and times"""


def no_say(text: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Result:
    """The place of one result: a folder of files, or an array."""

    path: Path
    settings: Mapping[str, Any]
    """JSON values of all that decides it"""
    files: tuple[str, ...] = ()
    """that a folder holds at least; none for an array"""
    shape: tuple[int, ...] = ()
    """an array's first dimensions"""
    say: Say = no_say

    def is_there(self) -> bool:
        """Whether it can be built upon; if it is damaged, this is said, and it is to be made anew.

        Raises:
            ConfigError: it was made by other settings.
            OutputError: something else lies in its place.
        """
        wanted, found = "a folder" if self.files else "a file", _kind(self.path)
        if found not in (None, wanted):
            raise OutputError(f"{self.path}: is {found}, but {wanted} belongs there. Move it away, or remove it.")
        if found is None:
            if self.path.is_symlink():
                raise OutputError(f"{self.path}: is a link to nothing. Remove it.")
            return False
        seen = [self.settings, {name: (one.st_size, one.st_mtime_ns) for name, one in _stats(self.path).items()}]
        if _known.get(self.path) == seen:
            return True
        record = self._record()
        problem = self._problem_without_record() if record is None else self._problem(record)
        if problem:
            self.say(f"{self.path}: {problem}; it is made anew")
            return False
        if record is None:
            self.say(f"{self.path}: keeps no record of its settings, as before 0.2.0; taken as made by today's")
        _known[self.path] = seen
        return True

    @contextmanager
    def made(self) -> Iterator[Path]:
        """Give a path to write to; when the context closes, what is there becomes the result, with its record.

        Raises:
            OutputError: it cannot be written; what was there before is as it was.
        """
        make_folder(self.path.parent)
        with (whole_folder if self.files else whole_file)(self.path) as part:
            yield part
            entry = {"settings": self.settings, "files": _digests(part)}
            write_whole(self._record_path, json.dumps(entry, indent=1) + "\n")

    @property
    def _record_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.made.json")

    def _record(self) -> Any:
        """What the record holds, {} if it is broken, None if there is none."""
        if not self._record_path.exists():
            return None
        try:
            found = read_json(self._record_path)
        except FileFormatError:
            return {}
        is_whole = all(isinstance(found.get(name), dict) for name in ("settings", "files"))
        return found if is_whole else {}

    def _problem(self, record: Mapping[str, Any]) -> str:
        if not record:
            return f"its record {self._record_path.name} is damaged"
        changed = changed_setting(record["settings"], json.loads(json.dumps(self.settings)))
        if changed:
            raise ConfigError(
                f"{self.path}: was made with {changed}. Ask for the same again, name another --work folder, or remove "
                "it and what was made from it."
            )
        try:
            found = _digests(self.path)
        except OSError as error:
            return f"cannot be read ({error.strerror or error})"
        # Files that a system adds, such as those of a file manager, do no harm.
        for name, written in sorted(record["files"].items()):
            if name not in found:
                return f"lacks {name}"
            if found[name] != written:
                return f"{name or 'its content'} is not what was written"
        return ""

    def _problem_without_record(self) -> str:
        return _folder_problem(self.path, self.files) if self.files else self._array_problem()

    def _array_problem(self) -> str:
        try:
            array = np.load(self.path, mmap_mode="r")
        except (ValueError, OSError, EOFError, OverflowError, MemoryError) as error:
            return f"is no whole array ({str(error).splitlines()[0] if str(error) else 'empty'})"
        if not isinstance(array, np.memmap) or self.path.stat().st_size != array.offset + array.nbytes:
            return "is no array of the length that it says"
        if array.shape[: len(self.shape)] != self.shape:
            raise ConfigError(
                f"{self.path}: holds {array.shape[: len(self.shape)]} pictures, but {self.shape} are asked for. Ask "
                "for the same again, name another --work folder, or remove it and what was made from it."
            )
        return ""


def _folder_problem(folder: Path, files: tuple[str, ...]) -> str:
    """What speaks against a folder that keeps no record of its files."""
    for name in files:
        if not (folder / name).is_file():
            return f"lacks {name}"
    for path in sorted(folder.rglob("*")):
        try:
            # A tokenizer's is far larger than any configuration, and slow to read.
            if path.suffix == ".json" and path.stat().st_size <= MOST_BYTES:
                read_json(path)
            elif path.suffix == ".json" and not path.read_bytes().rstrip().endswith(b"}"):
                return f"{path.relative_to(folder)} is cut"
            if path.suffix == ".safetensors":
                read_names(path)
        except FileFormatError:
            return f"{path.relative_to(folder)} is damaged"
    return ""


def _kind(path: Path) -> str | None:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be looked at ({error.strerror or error}). Move it away, or remove it."
        ) from error
    return "a folder" if stat.S_ISDIR(mode) else "a file" if stat.S_ISREG(mode) else "a device or a pipe"


def _stats(path: Path) -> dict[str, Any]:
    """Of every file by its name in the folder, or of the one file under the empty name."""
    if not path.is_dir():
        return {"": path.stat()}
    return {one.relative_to(path).as_posix(): one.stat() for one in sorted(path.rglob("*")) if one.is_file()}


def _digests(path: Path) -> dict[str, Any]:
    return {name: [one.st_size, _sha256(path / name if name else path)] for name, one in _stats(path).items()}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()
