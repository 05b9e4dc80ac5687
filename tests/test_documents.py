"""README and docs: every command is one that the command line understands, and what can run in seconds runs."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperdream_core.cli import main
from hyperdream_core.cli.command_list import COMMANDS
from hyperdream_core.cli.entry import build_parser

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

RUNNABLE = {
    "personalize": ["--polish-steps", "1", "--draw-steps", "1"],
    "prepare": ["--on-no-face", "whole-picture", "--size", "64"],
    "predict": [],
    "polish": ["--steps", "1"],
    "draw": ["--steps", "1", "--allow-unknown-words"],
    "export": [],
    "inspect": [],
}
"""What is added to a command so that it takes seconds; commands that are not here are only parsed."""
ABSENT = {"v1-5-pruned.safetensors", "own.safetensors"}
"""The reader's own checkpoint, and a predictor trained by the line before: not here."""


def commands(path: Path) -> Iterator[str]:
    """Command lines in indented blocks and in `code` of one line, without placeholders for values."""
    text = path.read_text(encoding="utf-8")
    yield from re.findall(r"^ {4}(?:.*?&& )?(hyperdream [a-z].*)$", text, re.MULTILINE)
    for code in re.findall(r"`(hyperdream [a-z][^`]*)`", text):
        if "COMMAND" not in code and "..." not in code:
            yield code


ALL = sorted({line for path in DOCUMENTS for line in commands(path)})


def words_of(line: str) -> list[str]:
    stands_for = {
        "PICTURE": "examples/portrait.png",
        "IDENTITY": "identity.safetensors",
        "FILE": "identity.safetensors",
    }
    stands_for |= {"TEXT": "a [V] face", "DIR": "out", "N": "1"}
    return [stands_for.get(word, word) for word in shlex.split(line)[1:]]


def test_there_are_commands_to_try() -> None:
    assert len(ALL) >= 12


@pytest.mark.parametrize("line", ALL)
def test_the_command_line_understands_it(line: str) -> None:
    words = words_of(line)
    # A name alone, as in a sentence, need not be complete.
    if len(words) > 1 or words[0] == "evaluate":
        build_parser(words).parse_args(words)
    else:
        assert words[0] in COMMANDS


@pytest.fixture
def folder(tmp_path: Path, astronaut: object, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with what the documents name: the example, two photographs and an identity."""
    from hyperdream_core.formats.identity_file import write_identity
    from tests.identities import make_identity

    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for name in ("me.jpg", "friends.jpg"):
        astronaut.save(tmp_path / name)  # type: ignore[attr-defined]
    write_identity(tmp_path / "identity.safetensors", make_identity("miniature", scale=0.05))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def runs_here(line: str) -> bool:
    words = shlex.split(line)
    return words[1] in RUNNABLE and not ABSENT & set(words) and len(words) > 2


@pytest.mark.parametrize("line", [line for line in ALL if runs_here(line)])
def test_it_runs_in_an_empty_folder(line: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = words_of(line)
    assert main([*words, *RUNNABLE[words[0]]]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_of_python_runs(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyperdream_core.pipelines.polishing.polish_config.STEPS_AFTER_PREDICTION", 1)
    for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(path), "exec"), {})


def test_the_readme_is_as_long_as_a_stranger_reads() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1100


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target
