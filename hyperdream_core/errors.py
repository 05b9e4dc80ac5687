"""What HyperDream raises on purpose, as one tree.

Every message says what is wrong with which thing, what was expected, and what to do, in that order. What it quotes of
a stranger's file cannot lengthen it beyond measure, break its line or move the cursor of a terminal.
"""

from __future__ import annotations

import re
import unicodedata
from os import PathLike
from pathlib import Path

_LONGEST = 2000
_BREAKS = re.compile("[\\s\x1c-\x1f\x85\u2028\u2029]+")


def printable(text: str, most: int = _LONGEST) -> str:
    """A text on one line: its middle left out beyond `most` characters, breaks as a space, what cannot be printed as
    an escape (so are halves of characters, which no file or terminal takes)."""
    if len(text) > most:
        text = f"{text[: most * 2 // 3]} ... {text[len(text) - most // 3 :]}"
    if text.isprintable():
        return text
    text = _BREAKS.sub(lambda found: " " if set(found[0]) & set("\n\r\t\v\f\x85\u2028\u2029") else found[0], text)
    return "".join(one if one.isprintable() or unicodedata.category(one) == "Zs" else _escaped(one) for one in text)


def quoted(value: object, most: int = 60) -> str:
    """A stranger's text in quotes, for messages: on one line, bounded, what cannot be printed as an escape."""
    text = str(value)
    return repr(text) if len(text) <= most else f"{text[:most]!r}..."


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class HyperDreamError(Exception):
    """Anything a user's file, picture, prompt or setting can cause; its text is meant for that user."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(HyperDreamError):
    """A setting is unknown, out of range or does not go with another one."""


class FileFormatError(HyperDreamError):
    """A file that cannot be read as what it should be: damaged, foreign, hostile or too new.

    Args:
        path: the file; the message opens with its name.
        problem: what is wrong, what was expected and the remedy, without a final full stop.
    """

    def __init__(self, path: str | PathLike[str], problem: str) -> None:
        self.path = Path(path)
        self.problem = problem
        super().__init__(f"{self.path.name}: {problem}")


class BaseMismatchError(HyperDreamError):
    """An adapter, predictor or checkpoint meets a base model it was not made for."""


class ReferenceImageError(HyperDreamError):
    """A reference picture cannot be used: unreadable, too small, or without the subject."""


class PromptError(HyperDreamError):
    """A prompt lacks the identifier or uses words that the base does not know."""


class MissingDependencyError(HyperDreamError):
    """A package beyond the required ones is not installed.

    Args:
        package: its import name.
        command: the command that installs it.
    """

    def __init__(self, package: str, command: str) -> None:
        self.package = package
        self.command = command
        super().__init__(f"the package {package!r} is not installed; add it with: {command}")


class OutputError(HyperDreamError):
    """A result cannot be written: no space, no permission, or numbers that are not finite."""


class Cancelled(HyperDreamError):
    """The user stopped a job; what was best so far has been kept."""
