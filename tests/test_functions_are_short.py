"""A function says one thing: it has fifty lines at most, besides its docstring, unless it lays something out."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST = 50
LAYOUTS = {"_create_panel", "_library_panel", "ui", "define_schema", "_training_inputs", "labelled_grid"}
"""One widget, input or place after the other: a table that is no clearer in pieces."""


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From its name to its end, without the docstring."""
    first = function.body[0]
    is_text = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    said = (first.end_lineno or 0) - first.lineno + 1 if is_text else 0
    return (function.end_lineno or 0) - function.lineno + 1 - said


def test_no_function_but_a_layout_has_more_than_fifty_lines() -> None:
    files = [path for room in ("hyperdream_core", "nodes", "scripts") for path in (ROOT / room).rglob("*.py")]
    assert len(files) > 100
    long = {
        f"{path.relative_to(ROOT)}: {node.name} has {lines_of(node)}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        if node.name not in LAYOUTS and lines_of(node) > MOST
    }
    assert not long
