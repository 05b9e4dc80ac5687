"""What HyperDream raises on purpose, as one tree.

Every message says what is wrong with which thing, what was expected, and what to do, in that order.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path


class HyperDreamError(Exception):
    """Anything a user's file, picture, prompt or setting can cause; its text is meant for that user."""


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
