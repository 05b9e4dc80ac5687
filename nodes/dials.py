"""Inputs of which several nodes have one: each kind is built in one place, so that it moves alike everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..hyperdream_core.errors import ConfigError


def strength_dial(name: str, tooltip: str) -> Any:
    """How much of an identity: 1 is as it was made, 0 is none, below 0 is its opposite."""
    return number_dial(name, tooltip, default=1.0, limits=(-4.0, 4.0), step=0.05)


def share_dial(name: str, tooltip: str, *, default: float) -> Any:
    """A part of a whole, 0..1."""
    return number_dial(name, tooltip, default=default, limits=(0.0, 1.0), step=0.01)


def number_dial(name: str, tooltip: str, *, default: float, limits: tuple[float, float], step: float) -> Any:
    """A number from the first limit to the second; a step is what a click adds, and what is typed may lie between."""
    low, high = limits
    # The browser rounds to the step's decimals by itself; told so, it does not have to guess them of a tiny step.
    finest = step if step < 0.001 else None
    return io.Float.Input(name, default=default, min=low, max=high, step=step, round=finest, tooltip=tooltip)


def range_dials() -> list[Any]:
    """Where in sampling an identity acts, as ComfyUI's own start and end percent mean it; see `check_range`."""
    return [
        share_dial(
            "start_percent",
            "When in sampling the identity starts to act: 0 is the first step. Later leaves the "
            "composition to the base.",
            default=0.0,
        ),
        share_dial(
            "end_percent",
            "When in sampling it stops acting: 1 is the last step. Earlier leaves fine texture to the base.",
            default=1.0,
        ),
    ]


def check_range(start_percent: float, end_percent: float) -> None:
    """Refuse a range that holds no step; other nodes may give any number.

    Raises:
        ConfigError: they do not lie in 0..1, or the end does not come after the start.
    """
    for name, value in (("start_percent", start_percent), ("end_percent", end_percent)):
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} must lie in 0..1, got {value:g}")
    if start_percent >= end_percent:
        raise ConfigError(
            f"start_percent is {start_percent:g} and end_percent {end_percent:g}, but the start must come before the "
            "end; raise end_percent"
        )


def count_dial(name: str, tooltip: str, *, default: int, limits: tuple[int, int], step: int = 1) -> Any:
    """A whole number from the first limit to the second."""
    low, high = limits
    return io.Int.Input(name, default=default, min=low, max=high, step=step, tooltip=tooltip)


def choice(name: str, tooltip: str, options: Sequence[str]) -> Any:
    """One of some words; the first, until another is picked."""
    return io.Combo.Input(name, options=list(options), default=options[0], tooltip=tooltip)


def prompt_box(name: str, tooltip: str, *, default: str = "") -> Any:
    """Several lines of a prompt, in which {one|another} is chosen anew for each run."""
    return io.String.Input(name, multiline=True, dynamic_prompts=True, default=default, tooltip=tooltip)


def subjects_prompt_box(name: str) -> Any:
    """The prompt that names the person."""
    return prompt_box(
        name,
        "What to draw. [V] stands for the person, as in 'a [V] face, at the beach'.",
        default="a [V] face, smiling",
    )
