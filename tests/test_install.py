from __future__ import annotations

import ast
import os
import re
import shlex
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
    assert imported == {"__future__", "sys", "importlib.util", "pathlib"}


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


def make_web_ui(folder: Path, kind: str) -> Path:
    (folder / "modules").mkdir(parents=True)
    (folder / "modules" / "launch_utils.py").touch()
    (folder / install.PINS).touch()
    if kind == "forge":
        (folder / "modules_forge").mkdir()
    return folder


@pytest.mark.parametrize(
    ("kind", "command"),
    [("a1111", "--no-deps diffusers==0.32.2 accelerate==0.21.0"), ("forge", "--no-deps diffusers==0.31.0 accel")],
)
def test_in_a_web_ui_no_command_moves_what_the_host_has_pinned(
    kind: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = make_web_ui(tmp_path, kind)
    found = install.web_ui([tmp_path / "nowhere", host])
    assert found == (kind, host)
    monkeypatch.setattr(install, "find_spec", lambda name: None)
    commands = [line for line in install.report(found) if "pip install" in line]
    assert sum(f"pip install {command}" in line for line in commands) == 1
    others = [line for line in commands if "--no-deps" not in line]
    assert others and all(f'pip install -c "{host / install.PINS}" ' in line for line in others)
    assert not any("diffusers accelerate" in line for line in commands)


def test_run_in_a_web_uis_folder_or_in_its_extensions_it_knows_the_host(tmp_path: Path) -> None:
    host = make_web_ui(tmp_path / "webui", "a1111")
    own = host / "extensions" / "hyperdream"
    own.mkdir(parents=True)
    (own / "install.py").write_bytes(SOURCE.read_bytes())
    for folder in (host, tmp_path):
        command = [sys.executable, "-S", "-E", str(own / "install.py")]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        assert "--no-deps diffusers==0.32.2" in done.stdout and install.PINS in done.stdout


def hosts() -> list[tuple[str, Path, str]]:
    """The web UIs that are named to the tests, each with its Python."""
    found = []
    for kind in ("a1111", "forge"):
        root = os.environ.get(f"HYPERDREAM_{kind.upper()}_ROOT")
        if root:
            python = os.environ.get(f"HYPERDREAM_{kind.upper()}_PYTHON", str(Path(root) / "venv" / "bin" / "python"))
            found.append((kind, Path(root), python))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not hosts(), reason="HYPERDREAM_A1111_ROOT and HYPERDREAM_FORGE_ROOT name no install")
def test_in_the_real_host_pip_would_change_no_release_that_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "find_spec", lambda name: None)
    for kind, root, python in hosts():
        pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)", (root / install.PINS).read_text(), re.MULTILINE))
        lines = install.report(install.web_ui([root]))
        # torch is not pinned there: the host installs it by itself.
        advised = [line for line in lines if "pip install" in line and " torch " not in line]
        assert len(advised) >= 8
        for line in advised:
            arguments = shlex.split(line.partition("-m pip ")[2], comments=True)
            command = [python, "-m", "pip", *arguments, "--dry-run", "--disable-pip-version-check"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            would = re.findall(
                r"(?:Would install | )([\w.]+)-([0-9][\w.]*)", done.stdout.rpartition("Would install")[2]
            )
            for name, version in would:
                assert pinned.get(name.replace("_", "-"), version) == version, (kind, line, name, version)


def test_an_old_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install.sys, "version_info", (3, 9, 2, "final", 0))
    assert install.report() == ["HyperDream: this is Python 3.9.2, 3.10 or newer is needed; install a newer Python."]
