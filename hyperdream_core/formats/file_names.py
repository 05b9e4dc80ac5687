"""Names that users type, as files of one folder and nowhere else, whatever the system."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from ..errors import ConfigError
from ..whole_file import make_folder

SUFFIX = ".safetensors"
LONGEST_NAME = 100
"""bytes in UTF-8"""

_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def check_name(name: str) -> str:
    """The name without its ending and without spaces around it, if a file can be called so in every system.

    Raises:
        ConfigError: it is empty, too long, holds a character that file names cannot have, or names a folder.
    """
    name = name.strip()
    if name.lower().endswith(SUFFIX):
        name = name[: -len(SUFFIX)].rstrip()
    problem = ""
    if not name:
        problem = "it is empty"
    elif len(name.encode("utf-8", "replace")) > LONGEST_NAME:
        problem = f"it is longer than {LONGEST_NAME} bytes"
    elif found := _FORBIDDEN.search(name):
        problem = f"it holds {found.group()!r}"
    elif name[0] == "." or name[-1] == ".":
        problem = "it begins or ends with a full stop"
    elif _RESERVED.fullmatch(name):
        problem = "Windows keeps it for a device"
    elif not name.isprintable():
        problem = "it holds characters that cannot be seen"
    if problem:
        raise ConfigError(f"{name[:120]!r} cannot be a name: {problem}. Use letters, digits, spaces, '-' and '_'.")
    return name


def plain_name(text: str) -> str:
    """A name that every system takes, made of any text, such as the name of a picture; a sound one is as it was.

    One that must be cut ends in a digest, so that two long texts do not become one name.
    """
    name = "".join(one if one.isprintable() and not _FORBIDDEN.match(one) else "-" for one in text).strip(" .")
    if len(name.encode("utf-8")) > LONGEST_NAME:
        mark = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:6]
        name = f"{name.encode('utf-8')[: LONGEST_NAME - 7].decode('utf-8', 'ignore').rstrip(' .')}-{mark}"
    if name.lower().endswith(SUFFIX):
        name = name[: -len(SUFFIX)].strip(" .")
    if reserved := _RESERVED.fullmatch(name):
        name = f"{reserved[1]}-{reserved[2] or ''}"
    return name or "unnamed"


def free_file(folder: Path, name: str) -> Path:
    """A .safetensors file of that name in the folder, counted up where there is one already; the folder is made.

    Raises:
        ConfigError: the name cannot be a file's.
        OutputError: the folder cannot be made.
    """
    plain = check_name(name)
    make_folder(folder)
    number, path = 1, folder / f"{plain}{SUFFIX}"
    while path.exists():
        number += 1
        path = folder / f"{plain}-{number}{SUFFIX}"
    return path
