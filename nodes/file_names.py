"""Names that users type, as files in ComfyUI's output folder and nowhere else."""

from __future__ import annotations

import re
from pathlib import Path

from ..hyperdream_core.errors import OutputError

_FORBIDDEN = re.compile(r'[\x00-\x1f<>:"/\\|?*]')
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
_LONGEST = 100


def checked_name(name: str) -> str:
    """The name without an ending, if it is a plain file name on every system.

    Raises:
        OutputError: it is empty, too long, reserved, or leads to another folder.
    """
    plain = name.strip().removesuffix(".safetensors")
    reason = ""
    if not plain:
        reason = "is empty"
    elif _FORBIDDEN.search(plain) or plain.startswith("."):
        reason = "leads to another folder or holds characters that file names cannot have"
    elif plain.endswith((".", " ")) or plain.split(".")[0].lower() in _RESERVED:
        reason = "is not allowed as a file name on Windows"
    elif len(plain) > _LONGEST:
        reason = f"has {len(plain)} characters"
    if reason:
        raise OutputError(
            f"the name {name[:120]!r} {reason}, but a plain name of at most {_LONGEST} characters is expected, such as "
            "'sofia'; change it"
        )
    return plain


def free_file(folder: Path, name: str) -> Path:
    """A .safetensors file of that name in the folder, counted up where there is one already; the folder is made.

    Raises:
        OutputError: the name is none, or the folder cannot be made.
    """
    plain = checked_name(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be made ({error.strerror}); choose an output folder you may write to"
        ) from error
    number, path = 1, folder / f"{plain}.safetensors"
    while path.exists():
        number += 1
        path = folder / f"{plain}-{number}.safetensors"
    return path
