"""Command-line flags made from configurations: a field's name, type, default and docstring are its flag and help."""

from __future__ import annotations

import argparse
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from ..bundled import SHIPPED
from ..config import field_help

Config = TypeVar("Config")


def add_config_flags(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    cls: type,
    rename: Mapping[str, str] | None = None,
    skip: tuple[str, ...] = (),
) -> None:
    """Add a flag for each field of a configuration; nested configurations get none.

    Args:
        parser: or a group of one.
        cls: the configuration.
        rename: field -> flag, where another name than the field's own is wanted; without dashes in front.
        skip: fields without a flag, for the caller to fill in.
    """
    texts, hints = field_help(cls), typing.get_type_hints(cls)
    for field in fields(cls):
        if field.name in skip or is_dataclass(_without_none(hints[field.name])):
            continue
        default = field.default if field.default_factory is MISSING else field.default_factory()
        flag = (rename or {}).get(field.name, field.name).replace("_", "-")
        # Left out unless given, so that the configuration's own defaults are the only ones.
        how: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": _destination(cls, field.name)}
        how |= _how_to_read(_without_none(hints[field.name]))
        shown = _help_text(texts.get(field.name, ""), default)
        parser.add_argument(f"--{flag}", help=shown, required=default is MISSING, **how)
        if flag in _OLDER:
            parser.add_argument(_OLDER[flag], help=argparse.SUPPRESS, **how)


_OLDER = {
    "polish-steps": "--finetune-steps",
    "polish-batch": "--finetune-batch",
    "draw-steps": "--sample-steps",
    "draw-batch": "--sample-batch",
}
"""What flags were called in 0.1.0; still understood, and not shown."""


def config_from_flags(cls: type[Config], arguments: argparse.Namespace, **known: Any) -> Config:
    """The configuration of the flags that were given; `known` fields come from the caller.

    Raises:
        ConfigError: a value is out of range.
    """
    return cls(**{**given_values(cls, arguments), **known})


def given_values(cls: type, arguments: argparse.Namespace) -> dict[str, Any]:
    """Field -> value of the flags that were given."""
    given = vars(arguments)
    names = [field.name for field in fields(cls)]
    values = {name: given[_destination(cls, name)] for name in names if _destination(cls, name) in given}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


_WRITTEN = ("out", "work", "checkpoint")
"""Flags that name what is written; whatever else names a file or a folder is read."""
_MAYBE_FILES = ("base", "predictor")
"""Flags that may name a file, or something that comes with HyperDream."""


def files_read(arguments: argparse.Namespace) -> tuple[Path, ...]:
    """The files and folders that a command line names to be read, as far as they are there."""
    found: list[Path] = []
    for name, value in vars(arguments).items():
        if name in _MAYBE_FILES and value not in (None, "none", SHIPPED):
            value = Path(value)
        if name not in _WRITTEN:
            found += [one for one in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(one, Path)]
    return tuple(found)


def _destination(cls: type, field: str) -> str:
    # Two configurations of one command may have a field of the same name.
    return f"{cls.__name__}.{field}"


def _how_to_read(hint: Any) -> dict[str, Any]:
    """What argparse must know to read a value of the annotated type."""
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(hint) is Literal:
        return {"choices": typing.get_args(hint)}
    if typing.get_origin(hint) is tuple:
        return {"nargs": "+", **_how_to_read(typing.get_args(hint)[0])}
    read, metavar = _READERS[hint]
    return {"type": read, "metavar": metavar}


def whole_number(text: str) -> int:
    """An integer that every generator takes as its seed."""
    value = int(text)
    if abs(value) >= 2**40:
        raise ValueError
    return value


def finite_number(text: str) -> float:
    """A number that can be calculated with."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def place(text: str) -> Path:
    """A file or folder that can be named."""
    if not text or "\0" in text:
        raise ValueError
    return Path(text)


# argparse puts the function's name into its message.
whole_number.__name__, finite_number.__name__, place.__name__ = "whole number", "number", "path"

_READERS: dict[Any, tuple[Callable[[str], Any], str]] = {
    int: (whole_number, "N"),
    float: (finite_number, "X"),
    str: (str, "TEXT"),
    Path: (place, "PATH"),
}


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (Union, types.UnionType):
        return next(part for part in typing.get_args(hint) if part is not type(None))
    return hint


def _help_text(text: str, default: Any) -> str:
    if default is MISSING or default in (None, (), ""):
        return text.replace("%", "%%")
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{text} (default: {shown})".replace("%", "%%")
