"""Inputs of which several nodes have one: each kind is built in one place, so that it moves alike everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io


def strength_dial(name: str, tooltip: str) -> Any:
    """How much of an identity: 1 is as it was made, 0 is none, below 0 is its opposite."""
    return io.Float.Input(name, default=1.0, min=-4.0, max=4.0, step=0.05, tooltip=tooltip)


def share_dial(name: str, tooltip: str, *, default: float) -> Any:
    """A part of a whole, 0..1."""
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)


def count_dial(name: str, tooltip: str, *, default: int, limits: tuple[int, int], step: int = 1) -> Any:
    """A whole number from the first limit to the second."""
    low, high = limits
    return io.Int.Input(name, default=default, min=low, max=high, step=step, tooltip=tooltip)


def choice(name: str, tooltip: str, options: Sequence[str]) -> Any:
    """One of some words; the first, until another is picked."""
    return io.Combo.Input(name, options=list(options), default=options[0], tooltip=tooltip)
