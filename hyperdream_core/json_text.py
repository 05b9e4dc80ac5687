"""JSON from outside, within bounds: nothing is parsed before its size, nesting and numbers are seen to be sane.

Python's own parser fails on deep nesting with a RecursionError, takes quadratic time for a number of many digits, and
lets NaN, Infinity, duplicated keys and halves of characters through.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from .errors import FileFormatError, HyperDreamError, quoted
from .regular_file import read_bounded

MOST_BYTES = 1_000_000
"""of a text, unless the caller expects more"""
_DEEPEST = 32
_LONGEST_NUMBER = 40
"""characters; a float64 has at most 24, an integer of 128 bits 39"""
# The closing mark is optional, so that a text without one is looked at once and not once from each of its marks.
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")
_LONG = re.compile(rf"[^\s\[\]{{}},:]{{{_LONGEST_NUMBER + 1},}}")
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_NAMES: dict[type, str] = {dict: "an object", list: "a list"}


class JsonTextError(HyperDreamError, ValueError):
    """A text is not the JSON it should be; says why, but neither of which file nor the remedy: who asked adds both."""


def parse_json(text: str | bytes, expected: type = dict, *, most: int = MOST_BYTES, finite: bool = True) -> Any:
    """The value that a JSON text stands for.

    Args:
        text: at most `most` bytes, UTF-8 with or without a mark of it.
        expected: what it must be at its top, `dict` or `list`.
        most: bytes it may have.
        finite: refuse NaN, Infinity and numbers beyond float64; else they are read as Python does.

    Raises:
        JsonTextError: otherwise, also for more than 32 levels, numbers of more than 40 characters, a key that stands
            twice in one object, and texts that are no Unicode.
    """
    plain = _decoded(text, most)
    _check_tokens(plain)
    hooks: dict[str, Any] = {"parse_constant": _no_constant, "parse_float": _finite_float} if finite else {}
    try:
        value = json.loads(plain, object_pairs_hook=_unique, **hooks)
    except json.JSONDecodeError as error:
        raise JsonTextError(f"is not valid JSON ({error.msg} in line {error.lineno}, column {error.colno})") from error
    if not isinstance(value, expected):
        raise JsonTextError(f"is not {_NAMES[expected]} but {_kind(value)}")
    if _HALF.search(plain):
        _decoded(json.dumps(value, ensure_ascii=False), 8 * most)
    return value


def read_json(path: Path | str, expected: type = dict, *, most: int = MOST_BYTES, finite: bool = True) -> Any:
    """The value in a JSON file; see `parse_json`.

    Raises:
        FileFormatError: there is no such file, it is no regular one, or it holds something else.
    """
    try:
        return parse_json(read_bounded(path, most), expected, most=most, finite=finite)
    except JsonTextError as error:
        raise FileFormatError(path, f"{error}. Correct it, or get the file again.") from error


def _decoded(text: str | bytes, most: int) -> str:
    if len(text) > most:
        raise JsonTextError(f"has {len(text):,} characters, but at most {most:,} are expected")
    try:
        if isinstance(text, bytes):
            return text.decode("utf-8-sig")
        text.encode("utf-8")
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise JsonTextError(f"is not UTF-8 ({error.reason})") from error
    return text


def _check_tokens(text: str) -> None:
    """Refuse what the parser would fail on or take long for."""
    # Strings first, and at once: a tokenizer has a hundred thousand.
    plain = _STRING.sub(" ", text)
    depth = 0
    for bracket in _BRACKET.findall(plain):
        depth += 1 if bracket in "[{" else -1
        if depth > _DEEPEST:
            raise JsonTextError(f"is nested deeper than {_DEEPEST} levels")
    number = _LONG.search(plain)
    if number is not None:
        length = number.end() - number.start()
        raise JsonTextError(f"holds a number of {length:,} characters, but at most {_LONGEST_NUMBER} mean something")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise JsonTextError(f"has the key {quoted(twice)} twice in one object")
    return entries


def _no_constant(name: str) -> Any:
    raise JsonTextError(f"holds {name}, but finite numbers are expected")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise JsonTextError(f"holds {text}, which is beyond all numbers that can be computed with")
    return value


def _kind(value: Any) -> str:
    names: dict[type, str] = {
        bool: "true or false",
        type(None): "null",
        str: "a text",
        dict: "an object",
        list: "a list",
    }
    return names.get(type(value), "a number")
