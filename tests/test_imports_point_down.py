"""The arrow rule, read from the source with `ast`: rooms import downwards, nothing in circles, no room is crowded.

nodes, scripts, cli -> miniature -> pipelines -> faces -> models, formats, pictures -> identity, tuned_scales -> bases
-> ops -> config, whole_file, bundled -> json_text -> regular_file -> errors

Within a room that has rooms of its own, `FLOORS` says the same of those and of the files beside them.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "hyperdream_core"
HEIGHT = {
    "errors": 0,
    "regular_file": 1,
    "json_text": 2,
    "config": 3,
    "whole_file": 3,
    "bundled": 3,
    "ops": 4,
    "bases": 5,
    "identity": 6,
    "tuned_scales": 6,
    "models": 7,
    "formats": 7,
    "pictures": 7,
    "faces": 8,
    "pipelines": 9,
    "miniature": 10,
    "verbs": 11,
    "cli": 11,
    "__main__": 12,
    "": 12,
}
FLOORS: dict[str, tuple[set[str], ...]] = {
    "hyperdream_core/pipelines": (
        {
            "base",
            "progress",
            "prompts",
            "undivided",
            "before_work",
            "results_folder",
            "scores",
            "export",
            "library",
            "companions",
        },
        {"describe", "diffusers", "drawing", "predictors"},
        {"corpora"},
        {"training"},
        {"polishing"},
        {"make_identity"},
        {"personalize"},
    ),
    "hyperdream_core/miniature": ({"world"}, {"trial"}, {"recipe", "companions"}),
    "hyperdream_core/formats": ({"container", "facts", "file_names"}, {"foreign"}, {"*"}),
    "nodes": ({"host"}, {"dials", "wires"}, {"drawing", "library", "making"}),
}
"""Folders and files of a room, lowest floor first; * is every other. On one floor only files may import each other."""
LARGEST_ROOM = 15
"""files of one folder, without its __init__"""
HOSTS = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "server", "execution", "modules", "gradio", "nodes"}


def core_files() -> list[Path]:
    return sorted(CORE.rglob("*.py"))


def room(path: Path) -> str:
    """Top-level part of the core that a file belongs to, '' for the package's own __init__."""
    name = path.relative_to(CORE).with_suffix("").parts[0]
    return "" if name == "__init__" else name


def imports(path: Path, source: str) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import anywhere in a file, those inside functions and for types too."""
    package = path.relative_to(ROOT).parent.parts
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


def all_files() -> list[Path]:
    return [*core_files(), *sorted((ROOT / "nodes").rglob("*.py")), *sorted((ROOT / "scripts").rglob("*.py"))]


def dotted(path: Path) -> str:
    """A file's name as a module; what lies in scripts/ is imported without it."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__").removeprefix("scripts.")


def floor(room: str, name: str) -> int | None:
    """The floor of a folder or file in a room with floors; None where nothing says it."""
    floors = FLOORS[room]
    named = next((number for number, names in enumerate(floors) if name in names), None)
    return named if named is not None else next((n for n, names in enumerate(floors) if "*" in names), None)


def faults_within_rooms(path: Path, source: str) -> list[str]:
    """Imports between the floors of one room that do not go down, one sentence each."""
    found = []
    for room in FLOORS:
        if not path.is_relative_to(ROOT / room):
            continue
        here, prefix = path.relative_to(ROOT / room).with_suffix("").parts[0], room.replace("/", ".") + "."
        for line, name in imports(path, source):
            there = name.removeprefix(prefix).partition(".")[0]
            if not name.startswith(prefix) or there == here or here == "__init__":
                continue
            ours, theirs = floor(room, here), floor(room, there)
            are_files = (ROOT / room / f"{here}.py").exists() and (ROOT / room / f"{there}.py").exists()
            if ours is not None and theirs is not None and (theirs > ours or (theirs == ours and not are_files)):
                found.append(f"{path.name}:{line} in {room}/{here} imports {there!r}")
    return found


def import_graph(sources: Mapping[str, tuple[Path, str]]) -> dict[str, set[str]]:
    """Module -> the modules among these that it imports."""
    graph: dict[str, set[str]] = {}
    for module, (path, source) in sources.items():
        names = {name.removeprefix("scripts.") for _, name in imports(path, source)}
        # The last part of `from a import b` may be a module or something in it.
        wanted = {name if name in sources else name.rpartition(".")[0] for name in names}
        graph[module] = {name for name in wanted if name in sources and name != module}
    return graph


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Every group of modules that reach each other."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen, stack = set(), list(graph[start])
        while stack:
            if (module := stack.pop()) not in seen:
                seen.add(module)
                stack += graph[module]
        reached[start] = seen
    groups = {tuple(sorted(m for m in reached[start] if start in reached[m])) for start in graph}
    return [list(group) for group in sorted(groups) if group]


def test_nothing_is_imported_in_a_circle() -> None:
    sources = {dotted(path): (path, path.read_text(encoding="utf-8")) for path in all_files()}
    assert not circles(import_graph(sources))


def test_floors_of_a_room_point_down() -> None:
    found = [fault for path in all_files() for fault in faults_within_rooms(path, path.read_text(encoding="utf-8"))]
    assert not found


@pytest.mark.parametrize("room", FLOORS)
def test_every_part_of_a_room_has_a_floor(room: str) -> None:
    parts = {path.stem for path in (ROOT / room).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert not {part for part in parts - {"__init__"} if floor(room, part) is None}


def test_no_room_is_crowded() -> None:
    sizes = Counter(str(path.parent.relative_to(ROOT)) for path in all_files() if path.name != "__init__.py")
    crowded = {room: size for room, size in sizes.items() if size > LARGEST_ROOM}
    assert not crowded, f"more than {LARGEST_ROOM} files in one folder: {crowded}; give it rooms"


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


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("hyperdream_core/pipelines/drawing/a.py", "from ..polishing import polish", "imports 'polishing'"),
        ("hyperdream_core/pipelines/drawing/a.py", "from ..diffusers.loading import x", "imports 'diffusers'"),
        ("hyperdream_core/pipelines/export.py", "def f():\n    from .personalize import x", "imports 'personalize'"),
        ("hyperdream_core/miniature/world/a.py", "from ..recipe.recipe import Recipe", "imports 'recipe'"),
        ("hyperdream_core/miniature/trial/a.py", "from ..recipe import corpus", "imports 'recipe'"),
        ("hyperdream_core/formats/container.py", "from .foreign import lora_names", "imports 'foreign'"),
        ("nodes/host/a.py", "from ..making.polish import x", "imports 'making'"),
    ],
)
def test_the_check_sees_an_arrow_within_a_room_that_turns_back(file: str, source: str, expected: str) -> None:
    assert any(expected in fault for fault in faults_within_rooms(ROOT / file, source))


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("hyperdream_core/pipelines/polishing/a.py", "from ..drawing import few_steps\nfrom . import polish"),
        ("hyperdream_core/pipelines/export.py", "from .base import Base"),
        ("nodes/making/polish.py", "from ..host import run\nfrom ..dials import x\nfrom ...hyperdream_core import ops"),
    ],
)
def test_the_check_lets_arrows_within_a_room_pass(file: str, source: str) -> None:
    assert not faults_within_rooms(ROOT / file, source)


TYPES_ONLY = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import A"


@pytest.mark.parametrize("back", ["from . import a", "from .a import x", "def f():\n    from .a import x", TYPES_ONLY])
def test_the_check_sees_a_circle(back: str) -> None:
    folder = CORE / "pipelines"
    sources = {"a": "from .b import x", "b": "from . import c", "c": back, "d": "from .c import x"}
    files = {f"hyperdream_core.pipelines.{name}": (folder / f"{name}.py", text) for name, text in sources.items()}
    assert circles(import_graph(files)) == [[f"hyperdream_core.pipelines.{name}" for name in "abc"]]
    files.pop("hyperdream_core.pipelines.c")
    assert not circles(import_graph(files))


def test_the_check_sees_a_circle_among_scripts() -> None:
    folder = ROOT / "scripts" / "hyperdream_webui"
    sources = {"a": "from hyperdream_webui.b import x", "b": "from .a import y"}
    files = {f"hyperdream_webui.{name}": (folder / f"{name}.py", text) for name, text in sources.items()}
    assert circles(import_graph(files)) == [["hyperdream_webui.a", "hyperdream_webui.b"]]
