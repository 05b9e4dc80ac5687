"""Any configuration to and from JSON, and the help text of its fields.

A configuration is a frozen, keyword-only dataclass whose fields are each followed by a docstring.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from .errors import ConfigError, printable, quoted
from .json_text import JsonTextError, parse_json

Config = TypeVar("Config")


def config_to_json(config: Any) -> dict[str, Any]:
    """The configuration as plain JSON values: dicts, lists, numbers, strings, booleans and None."""
    return {field.name: _plain(getattr(config, field.name)) for field in fields(config)}


def config_from_json(cls: type[Config], data: str | Mapping[str, Any]) -> Config:
    """The configuration described by a JSON text or by an already parsed JSON object.

    Fields left out keep their defaults.

    Raises:
        ConfigError: not JSON, an unknown key, a missing one, a value of the wrong type or out of range.
    """
    if isinstance(data, str):
        try:
            data = parse_json(data)
        except JsonTextError as error:
            raise ConfigError(f"{cls.__name__} {error}; correct that place") from error
    if not isinstance(data, Mapping):
        raise ConfigError(f"{cls.__name__} must be a JSON object, got {type(data).__name__}")
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(names), key=str)
    if unknown:
        raise ConfigError(f"{cls.__name__} has no setting {quoted(unknown[0])}; known: {', '.join(names)}")
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name not in data and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{cls.__name__} needs the setting {field.name!r}, which has no default; add it")
    hints = typing.get_type_hints(cls)
    return cls(**{name: _checked(value, hints[name], f"{cls.__name__}.{name}") for name, value in data.items()})


def field_help(cls: type) -> dict[str, str]:
    """The docstring under each field, by field name, on one line; inherited fields first."""
    texts: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if is_dataclass(owner):
            texts.update(_field_docstrings(owner))
    return {field.name: texts[field.name] for field in fields(cls) if field.name in texts}


def _field_docstrings(cls: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for field, after in zip(body.body, body.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            texts[field.target.id] = " ".join(after.value.value.split())
    return texts


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return config_to_json(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _checked(value: Any, hint: Any, name: str) -> Any:
    """The JSON value as the annotated type; JSON has no tuples, paths or dataclasses of its own."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _first_that_fits(value, arguments, name)
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, arguments))}, got {_said(value)}")
    if hint is Any:
        return value
    if is_dataclass(hint) and isinstance(value, Mapping):
        return config_from_json(typing.cast(type, hint), value)
    if origin is tuple and isinstance(value, (list, tuple)):
        if arguments[-1] is not Ellipsis and len(arguments) != len(value):
            raise ConfigError(f"{name} must have {len(arguments)} entries, got {len(value)}")
        hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_checked(item, item_hint, name) for item, item_hint in zip(value, hints, strict=True))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {key: _checked(item, arguments[1], name) for key, item in value.items()}
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise ConfigError(f"{name} must be a number that can be computed with, got {_said(value)}") from error
    # bool is an int to Python, but steps=true is a mistake.
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise ConfigError(f"{name} must be {_type_name(hint)}, got {_said(value)}")


def _said(value: Any) -> str:
    return quoted(value) if isinstance(value, str) else printable(repr(value), 200)


def _first_that_fits(value: Any, hints: tuple[Any, ...], name: str) -> Any:
    for hint in hints:
        try:
            return _checked(value, hint, name)
        except ConfigError:
            continue
    raise ConfigError(f"{name} must be {' or '.join(map(_type_name, hints))}, got {_said(value)}")


def _type_name(hint: Any) -> str:
    if hint is type(None):
        return "null"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}
    return names.get(hint) or str(hint)


def check_at_most(config: Any, **most: float) -> None:
    """Refuse settings beyond what any machine finishes or any number format holds, before memory is asked for them.

    Raises:
        ConfigError: one is larger than its bound in size, or is no number.
    """
    for name, bound in most.items():
        value = getattr(config, name)
        if value is not None and not abs(value) <= bound:
            raise ConfigError(f"{name} must be {bound:,} or less, got {value:,}")


def changed_setting(was: Any, now: Any, name: str = "") -> str:
    """The first setting in which two JSON values differ, such as "base.steps 40 (now 60)"; empty if none does."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for key in sorted({*was, *now}, key=str):
            found = changed_setting(was.get(key), now.get(key), f"{name}.{key}" if name else str(key))
            if found:
                return found
        return ""
    before, after = (printable(json.dumps(value, default=str), 60) for value in (was, now))
    return "" if was == now else f"{name or 'settings'} {before} (now {after})"
