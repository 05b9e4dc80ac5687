from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from hyperdream_core.config import config_from_json, config_to_json, field_help
from hyperdream_core.errors import ConfigError
from hyperdream_core.pipelines.drawing.draw import DrawConfig


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 3
    """Width,
    in features."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ConfigError(f"width must be 1 or more, got {self.width}")


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Settings."""

    name: str
    """Name of the run."""
    rate: float = 0.5
    """Rate, 0..1."""
    seed: int | None = None
    """Seed; null draws one."""
    is_fast: bool = False
    """Whether to hurry."""
    mode: Literal["live", "merged"] = "live"
    """How adapters run."""
    sizes: tuple[int, ...] = (1, 2)
    """Sizes, px."""
    span: tuple[float, float] = (0.0, 1.0)
    """From and to."""
    folder: Path = Path("out")
    """Where results go."""
    inner: Inner = field(default_factory=Inner)
    """The inner settings."""


@dataclass(frozen=True, kw_only=True)
class Heir(Outer):
    extra: int = 0
    """One more."""


def test_a_configuration_survives_json_text() -> None:
    config = Outer(name="a", seed=7, sizes=(5,), span=(0.25, 1.0), folder=Path("x/y"), inner=Inner(width=9))
    assert config_from_json(Outer, json.dumps(config_to_json(config))) == config


def test_what_is_left_out_keeps_its_default_and_whole_numbers_serve_as_numbers() -> None:
    config = config_from_json(Outer, {"name": "a", "rate": 1})
    assert config == Outer(name="a", rate=1.0)
    assert isinstance(config.rate, float)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"name": "a", "widht": 3}, r"Outer has no setting 'widht'; known: name, rate"),
        ({}, "needs the setting 'name'"),
        ({"name": 3}, "Outer.name must be a text, got 3"),
        ({"name": "a", "rate": "fast"}, "Outer.rate must be a number, got 'fast'"),
        ({"name": "a", "rate": True}, "Outer.rate must be a number, got True"),
        ({"name": "a", "seed": 1.5}, r"Outer.seed must be a whole number or null, got 1\.5"),
        ({"name": "a", "seed": True}, "Outer.seed must be a whole number or null, got True"),
        ({"name": "a", "is_fast": 1}, "Outer.is_fast must be true or false, got 1"),
        ({"name": "a", "mode": "dead"}, "Outer.mode must be one of 'live', 'merged', got 'dead'"),
        ({"name": "a", "sizes": [1, "2"]}, "Outer.sizes must be a whole number, got '2'"),
        ({"name": "a", "span": [0.5]}, "Outer.span must have 2 entries, got 1"),
        ({"name": "a", "inner": {"depth": 1}}, "Inner has no setting 'depth'"),
        ({"name": "a", "inner": {"width": 0}}, "width must be 1 or more, got 0"),
        ("{", "Outer is not valid JSON"),
        ("[]", "Outer is not an object but a list"),
    ],
)
def test_wrong_settings_are_refused_by_name(data: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config_from_json(Outer, data)  # type: ignore[arg-type]


def test_help_is_the_docstring_under_each_field_inherited_ones_included() -> None:
    assert field_help(Inner) == {"width": "Width, in features."}
    texts = field_help(Heir)
    assert list(texts) == [*field_help(Outer), "extra"]
    assert (texts["rate"], texts["extra"]) == ("Rate, 0..1.", "One more.")


@pytest.mark.parametrize("name", ["steps", "batch", "size", "guidance_scale", "strength", "seed"])
def test_settings_that_no_machine_finishes_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be [0-9,]+ or less, got"):
        DrawConfig(**{name: 2**64})


def test_a_strength_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="strength must be 100 or less, got nan"):
        DrawConfig(strength=float("nan"))
