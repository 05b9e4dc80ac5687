"""Guidance on the axes of the hosts' X/Y/Z plot: who, how strong, and how guided.

A value is left with the job, where the accordion finds it; that it has one switches guidance on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .guided import PRESETS

_MARK = "hyperdream_axes"
_PREFIX = "[HyperDream] "


def chosen(p: Any) -> dict[str, Any]:
    """The dials that the plot has set for a job, by their names."""
    found: dict[str, Any] = getattr(p, _MARK, {})
    return found


def register(names: Callable[[], list[str]]) -> bool:
    """Add the axes to the host's plot; returns whether they are there, and adds them once.

    Args:
        names: gives the identities that guidance can take, and the word for nobody.
    """
    from modules import scripts

    plots = [one.module for one in scripts.scripts_data if one.script_class.__module__.endswith("xyz_grid.py")]
    if not plots or not hasattr(plots[0], "AxisOption"):
        return False
    plot = plots[0]
    if not any(option.label.startswith(_PREFIX) for option in plot.axis_options):
        plot.axis_options.extend(_options(plot.AxisOption, names))
    return True


def _options(make: Any, names: Callable[[], list[str]]) -> list[Any]:
    return [
        make(f"{_PREFIX}Identity", str, _setter("identity"), confirm=_known(names), choices=names),
        make(f"{_PREFIX}Guidance", str, _setter("guidance"), confirm=_known(_presets), choices=_presets),
        make(f"{_PREFIX}Strength of the identity", float, _setter("strength")),
        make(f"{_PREFIX}CFG of the base", float, _setter("base_scale")),
        make(f"{_PREFIX}CFG of the person", float, _setter("subject_scale")),
    ]


def _presets() -> list[str]:
    return list(PRESETS)


def _setter(dial: str) -> Callable[..., None]:
    def apply(p: Any, value: Any, values: Any) -> None:
        # A new one each time: the plot copies its job for every cell, but not deeply.
        setattr(p, _MARK, {**chosen(p), dial: value})

    return apply


def _known(names: Callable[[], Sequence[str]]) -> Callable[..., None]:
    """Refuses a value before the plot begins."""

    def confirm(p: Any, values: list[str]) -> None:
        known = names()
        for value in values:
            if value not in known:
                raise RuntimeError(f"{value!r} is none of {', '.join(known)}; choose among them")

    return confirm
