from __future__ import annotations

import inspect
from pathlib import Path

from hyperdream_core import errors
from hyperdream_core.errors import FileFormatError, HyperDreamError, MissingDependencyError


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
