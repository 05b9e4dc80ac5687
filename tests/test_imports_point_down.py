"""The arrow rule of the core, read from the source with `ast`.

nodes, scripts, cli -> miniature -> pipelines -> faces -> models, formats, pictures -> identity -> bases -> ops
-> config, bundled -> errors
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "hyperdream_core"
HEIGHT = {
    "errors": 0,
    "config": 1,
    "whole_file": 1,
    "bundled": 1,
    "ops": 2,
    "bases": 3,
    "identity": 4,
    "models": 5,
    "formats": 5,
    "pictures": 5,
    "faces": 6,
    "pipelines": 7,
    "miniature": 8,
    "cli": 9,
    "__main__": 10,
    "": 10,
}
HOSTS = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "server", "execution", "modules", "gradio", "nodes"}


def core_files() -> list[Path]:
    return sorted(CORE.rglob("*.py"))


def room(path: Path) -> str:
    """Top-level part of the core that a file belongs to, '' for the package's own __init__."""
    name = path.relative_to(CORE).with_suffix("").parts[0]
    return "" if name == "__init__" else name


def imports(path: Path, source: str) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import anywhere in a file, those inside functions too."""
    package = ("hyperdream_core", *path.relative_to(CORE).parent.parts)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join((*above, *filter(None, [node.module])))
            # `from . import ops` names a room only in its alias.
            yield from ((node.lineno, f"{stem}.{alias.name}") for alias in node.names)


def faults(path: Path, source: str) -> list[str]:
    """What a file of the core imports against the rules, one sentence each."""
    here, found = room(path), []
    for line, name in imports(path, source):
        first, *rest = name.split(".")
        if first in HOSTS:
            found.append(f"{path.name}:{line} imports the host's {first!r}")
        there = rest[0] if first == "hyperdream_core" and rest else ""
        if there in HEIGHT and there not in ("", here) and HEIGHT[here] <= HEIGHT[there]:
            found.append(f"{path.name}:{line} in {here!r} imports {there!r}")
    return found


@pytest.mark.parametrize("path", core_files(), ids=lambda path: str(path.relative_to(CORE)))
def test_imports_point_down(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert not faults(path, source)
    assert "hyperdream_core" not in {name.split(".")[0] for _, name in absolute_imports(source)}, "use relative imports"


def absolute_imports(source: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.lineno, node.module or ""


def test_every_file_lies_in_a_known_room() -> None:
    assert {room(path) for path in core_files()} <= {"", *HEIGHT}


def test_the_core_needs_nothing_beyond_what_it_declares_when_it_is_imported() -> None:
    """Top-level imports are the standard library or packages that both hosts have; the rest is imported on use."""
    allowed = {*sys.stdlib_module_names, "torch", "numpy", "safetensors", "einops", "PIL", "tqdm"}
    for path in core_files():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            foreign = {name.split(".")[0] for name in names} - allowed
            assert not foreign, f"{path.relative_to(ROOT)}:{node.lineno} imports {foreign} when loaded"


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("ops/lidb.py", "from ..bases import sd15", "'ops' imports 'bases'"),
        ("ops/lidb.py", "from .. import pipelines", "'ops' imports 'pipelines'"),
        ("models/a.py", "def f():\n    from ..formats.container import read", "'models' imports 'formats'"),
        ("pipelines/a.py", "from ..miniature import people", "'pipelines' imports 'miniature'"),
        ("pictures/a.py", "import comfy.utils", "host's 'comfy'"),
        ("config.py", "from .ops import noise", "'config' imports 'ops'"),
    ],
)
def test_the_check_sees_an_arrow_that_turns_back(file: str, source: str, expected: str) -> None:
    assert any(expected in fault for fault in faults(CORE / file, source))


def test_the_check_lets_arrows_down_pass() -> None:
    assert not faults(CORE / "pipelines" / "a.py", "from ..models import blocks\nfrom .loading import x\nimport torch")
