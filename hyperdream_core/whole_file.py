"""Whole files and folders: what is written is there whole, or what was there before is as it was.

Everything is written beside its place under a name of its own, `.NAME.MACHINE-PROCESS-NUMBER.part`, flushed to the disk
and renamed, so that two writers of one file never meet and a reader never sees half of it. A failure or an interrupt
removes the part; one that a killed process has left is recognised by its name and removed by the next who writes there.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import HyperDreamError, OutputError

_PART = re.compile(r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{6})-(?P<process>[0-9]{1,10})-[0-9a-f]{8}\.part", re.DOTALL)
_RUST_SAYS = re.compile(r"(?P<reason>[^:]+) \(os error [0-9]+\)")
_KEPT_OF_NAME = 40
"""characters of a file's name in that of its part; systems end names at 255 bytes"""
_STALE_AFTER = 24 * 3600.0
"""seconds after which a part of another machine, or of one that cannot be asked, counts as left behind"""
_ATTEMPTS = 20
_ours: set[str] = set()
"""parts that this process is writing"""


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Give a path to write to; when the context closes, what is there takes the file's place.

    Raises:
        OutputError: `path` is something else than a file, such as a device or a link, its folder cannot be written, or
            the disk is full; what was there before is as it was.
    """
    path = Path(path)
    check_place(path)
    with _part_of(path, "a file") as part:
        yield part
        _flush(part)
        os.replace(part, path)


@contextmanager
def whole_folder(path: Path | str) -> Iterator[Path]:
    """Give an empty folder to fill; when the context closes, it takes the place of `path`, whatever was in that.

    Raises:
        OutputError: as `whole_file`, of a folder.
    """
    path = Path(path)
    _check_place(path, stat.S_ISDIR, "folder")
    with _part_of(path, "a folder") as part:
        part.mkdir()
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                _flush(file)
        _take_place(part, path)


def write_whole(path: Path | str, content: str | bytes) -> None:
    """Write a text (UTF-8, line ends as they are) or bytes as a whole file.

    Raises:
        OutputError: as `whole_file`.
    """
    with whole_file(path) as part:
        part.write_bytes(as_text(content).encode() if isinstance(content, str) else content)


def as_text(text: str) -> str:
    """A text that files can hold: halves of characters, as of a name in another encoding, are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def check_writable(path: Path | str) -> None:
    """See, before any work, that a file can be written there: a part is written and removed, where the first folder is
    that is there already.

    Raises:
        OutputError: as `whole_file`.
    """
    path = Path(path)
    _check_place(path, stat.S_ISREG, "file")
    above = next((one for one in path.parents if os.path.lexists(one)), path.parent)
    with _part_of(above / path.name, "a file") as part:
        part.write_bytes(b"1")


def check_folder_place(path: Path | str) -> None:
    """See, before any work, that nothing but a folder lies where a folder will be written.

    Raises:
        OutputError: something else does.
    """
    _check_place(Path(path), stat.S_ISDIR, "folder")


def make_folder(path: Path) -> None:
    """Make a folder, unless it is there.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be made ({error.strerror or error}), but a folder belongs there. Move away what is there, "
            "or remove it."
        ) from error


def reserve(path: Path, size: int) -> None:
    """Take `size` bytes of the disk for a file that will be mapped into memory: a full disk fails here.

    A page of a map that finds no place on the disk ends the process by a signal, which no program can catch.

    Raises:
        OSError: there is no room.
    """
    with open(path, "ab") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        zeros = bytes(1 << 20)
        for start in range(os.fstat(file.fileno()).st_size, size, len(zeros)):
            file.write(zeros[: size - start])


def check_place(path: Path) -> None:
    """Refuse a place where no file can be written, or where something else than a file is.

    Raises:
        OutputError: as `whole_file`.
    """
    _check_place(path, stat.S_ISREG, "file")


def remove_left_behind(folder: Path) -> None:
    """Remove what killed processes have left half-written in a folder, whatever it was to become."""
    _remove_left_behind(folder, None)


def is_part(path: Path | str) -> bool:
    """Whether a file or folder is, by its name, one that somebody is writing or was killed over."""
    return _PART.fullmatch(Path(path).name) is not None


@contextmanager
def _part_of(path: Path, thing: str) -> Iterator[Path]:
    """A free name beside `path`; nothing is left there, and an OSError becomes ours."""
    _remove_left_behind(path.parent, path.name[:_KEPT_OF_NAME])
    part = path.with_name(f".{path.name[:_KEPT_OF_NAME]}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.part")
    _ours.add(part.name)
    try:
        yield part
    except BaseException as error:
        reason = _why_not_written(error)
        if reason is None:
            raise
        raise OutputError(
            f"{path}: cannot be written ({reason}); {thing} of that name is as it was. Free some space or choose "
            "another folder."
        ) from error
    finally:
        _remove(part)
        _ours.discard(part.name)


def _why_not_written(error: BaseException) -> str | None:
    """What the system said against writing, if that is what an error is about.

    Libraries that are written in Rust do not raise an OSError: the tokenizers' raises a plain Exception.
    """
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        # A tree's copy gathers what every file met: (from, to, "[Errno 28] No space left on device: 'name'").
        met = re.match(r"(\[Errno [0-9]+\] )?(?P<reason>[^:]+)", str(error.args[0][0][2]))
        return met["reason"] if met else "it could not be copied"
    if isinstance(error, OSError):
        return str(error.strerror or error)
    found = None if isinstance(error, HyperDreamError) else _RUST_SAYS.search(str(error))
    return found["reason"].strip() if found else None


def _check_place(path: Path, is_right: Callable[[int], bool], thing: str) -> None:
    """Refuse to replace what is no file, or no folder, and never could be put back."""
    try:
        if not path.name or path.name == "..":
            raise ValueError("it is empty")
        mode = os.lstat(path).st_mode
    except ValueError as error:
        raise OutputError(f"{str(path)!r}: cannot be a {thing}'s name ({error}). Choose another one.") from error
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); choose another name or folder."
        ) from error
    if not is_right(mode):
        kinds = {"a folder": stat.S_ISDIR, "a link": stat.S_ISLNK, "a file": stat.S_ISREG}
        found = next((kind for kind, is_kind in kinds.items() if is_kind(mode)), "a device or a pipe")
        raise OutputError(
            f"{path}: is {found}, which would be lost, but a {thing} belongs there. Choose another name, or remove it."
        )


def _take_place(part: Path, path: Path) -> None:
    """Rename a folder to `path`, whose own content, if any, goes only then; the last of several writers wins."""
    for _ in range(_ATTEMPTS):
        try:
            os.rename(part, path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES):
                raise
        with _part_of(path, "a folder") as old:
            with suppress(FileNotFoundError):  # Another writer has just moved it.
                os.rename(path, old)
            try:
                os.rename(part, path)
                return
            except OSError:
                with suppress(OSError):  # Another writer's whole folder is there.
                    os.rename(old, path)
    raise OSError(errno.EBUSY, "other writers are at the same folder")


def _flush(path: Path) -> None:
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _remove_left_behind(folder: Path, name: str | None) -> None:
    """Parts of a file by the start of its name, or of any."""
    with suppress(OSError, ValueError), os.scandir(folder) as entries:
        for entry in entries:
            found = _PART.fullmatch(entry.name)
            if found and name in (None, found["name"]) and _is_left_behind(entry, found):
                _remove(Path(entry.path))


def _is_left_behind(entry: os.DirEntry[str], found: re.Match[str]) -> bool:
    process = int(found["process"])
    # On Windows there is no signal that only asks.
    if found["machine"] == _machine() and sys.platform != "win32":
        return entry.name not in _ours if process == os.getpid() else not _runs(process)
    return time.time() - entry.stat().st_mtime > _STALE_AFTER


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # Somebody else's.
    return True


def _remove(part: Path) -> None:
    with suppress(OSError):
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)


def _machine() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]
