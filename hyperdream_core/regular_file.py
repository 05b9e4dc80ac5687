"""Input files, opened only if they are files: a named pipe or a device would be waited for, or read for ever."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from .errors import FileFormatError, quoted


def check_regular(path: Path | str) -> int:
    """See that there is a file and that it is an ordinary one; its size in bytes.

    Raises:
        FileFormatError: otherwise.
    """
    try:
        state = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise unreadable(path, error) from error
    if not stat.S_ISREG(state.st_mode):
        found = "a folder" if stat.S_ISDIR(state.st_mode) else "a pipe or a device"
        raise FileFormatError(path, f"is {found}, but a file is expected. Check the path: {quoted(path, 300)}.")
    return state.st_size


def read_bounded(path: Path | str, most: int) -> bytes:
    """The content of a file of at most that many bytes.

    Raises:
        FileFormatError: there is none, it cannot be read, it is no ordinary file, or it is larger.
    """
    size = check_regular(path)
    try:
        with open(path, "rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(content) > most:
        raise FileFormatError(path, f"has {size:,} bytes, but at most {most:,} are expected. Get the right file.")
    return content


def unreadable(path: Path | str, error: Exception) -> FileFormatError:
    """The refusal of a file that the system does not open."""
    reason = getattr(error, "strerror", None) or error
    return FileFormatError(
        path, f"cannot be opened ({reason}), but a readable file is expected. Check the path: {quoted(path, 300)}."
    )
