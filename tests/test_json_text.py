"""JSON from outside ends in a value or in one sentence, whatever it is."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from hyperdream_core.errors import FileFormatError
from hyperdream_core.json_text import JsonTextError, parse_json, read_json


def test_what_is_sane_is_read_as_python_reads_it() -> None:
    value = {"a": [1, -2.5, 1e300, True, None, 'Zoë \U0001f600 \\ " ]]]}'], "b": {"c": {}}, "n": 2**100}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False), json.dumps(value, indent=2).encode()):
        assert parse_json(text) == value
    assert parse_json("[1]", list) == [1] and parse_json(b"\xef\xbb\xbf{}") == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[]", "not an object but a list"),
        ("true", "but true or false"),
        ("1", "but a number"),
        ('{"a": ' + "[" * 100_000, "nested deeper than 32"),
        ("[" * 33 + "]" * 33, "nested deeper than 32"),
        ('{"a": ' + "9" * 5000 + "}", "number of 5,000 characters"),
        ('{"a": -' + "9" * 900_000 + "}", "number of 900,001 characters"),
        ('{"a": NaN}', "holds NaN"),
        ('{"a": -Infinity}', "holds -Infinity"),
        ('{"a": 1e999}', "holds 1e999"),
        ('{"a": 1, "a": 2}', "the key 'a' twice"),
        ('{"a": "\\ud800"}', "not UTF-8"),
        ('{"a": ["\\uDFFF"]}', "not UTF-8"),
        ('{"\\ud83d": 1}', "not UTF-8"),
        ('{"a": "\ud800"}', "not UTF-8"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"\x00\x00", "not valid JSON"),
        ('"' + '\\"' * 400_000, "not valid JSON"),
        ('{"a": "' + "x" * 1_000_000 + '"}', "at most 1,000,000"),
    ],
    ids=lambda one: repr(one[:20]),
)
def test_what_is_not_is_refused_in_one_sentence(text: str | bytes, says: str) -> None:
    with pytest.raises(JsonTextError) as caught:
        parse_json(text)
    assert says in str(caught.value) and len(str(caught.value)) < 200


def test_pairs_of_halves_are_characters() -> None:
    assert parse_json('{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


def test_infinity_is_read_where_it_is_asked_for() -> None:
    assert parse_json('{"lambda_min_clipped": -Infinity}', finite=False) == {"lambda_min_clipped": float("-inf")}


def test_a_file_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_bytes(b"\xff\xfe")
    for thing in (path, tmp_path / "none.json", tmp_path, tmp_path / "a\0b"):
        with pytest.raises(FileFormatError):
            read_json(thing)
    path.write_text('{"steps": 3}')
    assert read_json(path) == {"steps": 3}
    with pytest.raises(FileFormatError, match=r"settings.json: has 12 bytes"):
        read_json(path, most=10)


@pytest.mark.skipif(sys.platform == "win32", reason="has no such files")
def test_a_pipe_and_an_endless_device_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(FileFormatError, match="a pipe or a device"):
            read_json(path)
