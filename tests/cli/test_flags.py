from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from hyperdream_core.cli.flags import add_config_flags, config_from_flags


@dataclass(frozen=True, kw_only=True)
class Inner:
    depth: int = 1
    """Not for the command line."""


@dataclass(frozen=True, kw_only=True)
class Toy:
    """Settings of nothing."""

    many_steps: int = 3
    """Steps, 100 % of them."""
    rate: float = 0.5
    """Rate."""
    mode: Literal["fast", "slow"] = "fast"
    """Mode."""
    names: tuple[str, ...] = ("a", "b")
    """Names."""
    exact: bool = False
    """Exactly?"""
    file: Path | None = None
    """File."""
    inner: Inner = field(default_factory=Inner)
    """Nested."""
    hidden: int = 7
    """Skipped."""


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_config_flags(parser, Toy, {"rate": "toy-rate"}, skip=("hidden",))
    return parser


def test_flags_left_out_keep_the_configurations_defaults(parser: argparse.ArgumentParser) -> None:
    assert config_from_flags(Toy, parser.parse_args([])) == Toy()


def test_every_kind_of_value_is_read(parser: argparse.ArgumentParser) -> None:
    words = ["--many-steps", "5", "--toy-rate", "1e-3", "--mode", "slow", "--names", "x", "y", "--exact", "--file", "a"]
    expected = Toy(many_steps=5, rate=0.001, mode="slow", names=("x", "y"), exact=True, file=Path("a"))
    assert config_from_flags(Toy, parser.parse_args(words)) == expected
    assert config_from_flags(Toy, parser.parse_args(["--no-exact"]), hidden=9) == Toy(hidden=9)


def test_help_is_the_docstring_and_the_default(parser: argparse.ArgumentParser) -> None:
    text = " ".join(parser.format_help().split())
    assert "Steps, 100 % of them. (default: 3)" in text and "Names. (default: a b)" in text
    assert "File." in text and "File. (default" not in text
    assert "--inner" not in text and "--hidden" not in text


def test_two_configurations_with_one_field_name_stay_apart() -> None:
    parser = argparse.ArgumentParser()
    add_config_flags(parser, Toy, skip=("exact",))
    add_config_flags(parser, Inner)
    arguments = parser.parse_args(["--depth", "4"])
    assert config_from_flags(Inner, arguments) == Inner(depth=4) and config_from_flags(Toy, arguments) == Toy()


def test_other_programs_prompt_syntax_is_said_where_it_would_be_read_as_words() -> None:
    from hyperdream_core.cli.prompt_flags import Prompts

    prompts = Prompts(texts=("a (sad:1.2) [V] face, BREAK",), inserts_identifier=False, allows_unknown_words=False)
    (note,) = prompts.syntax_notes("sd15")
    assert "'(sad:1.2)', 'BREAK'" in note and "read as plain text" in note
    assert prompts.syntax_notes("miniature") == []
