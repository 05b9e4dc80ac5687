from __future__ import annotations

import inspect
from pathlib import Path

from hyperdream_core import errors
from hyperdream_core.errors import FileFormatError, HyperDreamError, MissingDependencyError, quoted


def test_everything_raised_on_purpose_is_one_tree() -> None:
    classes = [value for _, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, Exception)]
    assert len(classes) == 9
    assert all(issubclass(value, HyperDreamError) for value in classes)


def test_a_file_error_opens_with_the_files_name_and_keeps_the_path() -> None:
    error = FileFormatError("some/folder/sofia.safetensors", "is empty")
    assert str(error) == "sofia.safetensors: is empty"
    assert error.path == Path("some/folder/sofia.safetensors")


def test_a_missing_package_comes_with_its_command() -> None:
    error = MissingDependencyError("insightface", "pip install insightface onnxruntime")
    assert str(error) == "the package 'insightface' is not installed; add it with: pip install insightface onnxruntime"


def test_what_a_message_quotes_neither_breaks_its_line_nor_lengthens_it_beyond_measure() -> None:
    error = FileFormatError("a\nb\x1b[2J\ud800\u202e.safetensors", "has " + "x" * 1_000_000 + ". Get it again.")
    text = str(error)
    assert text.startswith("a b\\x1b[2J\\ud800\\u202e.safetensors: has xxx") and text.endswith("xxx. Get it again.")
    assert text.isprintable() and len(text) < 2100
    text.encode("utf-8")


def test_names_of_all_languages_stay_as_they_are() -> None:
    for name in ("Zoë  Šimůnková", "山田\u3000花子", "ليلى"):
        assert str(HyperDreamError(name)) == name


def test_a_quotation_is_bounded_and_printable() -> None:
    assert quoted("a\nb\x1b\udc80") == r"'a\nb\x1b\udc80'"
    assert quoted("x" * 100, 10) == "'xxxxxxxxxx'..." and quoted(12) == "'12'"
