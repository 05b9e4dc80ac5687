from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import install

SOURCE = Path(install.__file__)


def test_it_uses_the_standard_library_alone_and_starts_nothing() -> None:
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "sys", "importlib.util"}


def test_run_as_a_host_does_it_prints_and_succeeds_even_with_nothing_installed(tmp_path: Path) -> None:
    # -S leaves out site-packages: a Python in which everything is missing.
    command = [sys.executable, "-S", "-E", str(SOURCE)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert f'"{sys.executable}" -m pip install torch ' in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_it_names_only_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "find_spec", lambda name: None if name == "skimage" else object())
    assert install.report() == [
        "HyperDream: everything required is here.",
        "HyperDream: optional, add only what you want:",
        f'  "{sys.executable}" -m pip install scikit-image    # finding faces in uncropped pictures',
    ]
    monkeypatch.setattr(install, "find_spec", lambda name: None if name == "safetensors" else object())
    assert install.report() == [
        "HyperDream: 1 required package(s) missing. Add with:",
        f'  "{sys.executable}" -m pip install safetensors    # reading and writing identities',
    ]


def test_an_old_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install.sys, "version_info", (3, 9, 2, "final", 0))
    assert install.report() == ["HyperDream: this is Python 3.9.2, 3.10 or newer is needed; install a newer Python."]
