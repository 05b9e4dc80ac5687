"""What is known of a training while it runs: a table as CSV, its curves as a picture, and any of Accelerate's trackers.

The table is written whole at every look. Where a training goes on from its checkpoint, rows of steps that are taken
again are left out first, so that the table is that of a training that was never stopped.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import ConfigError, MissingDependencyError
from ...pictures.curves import Curves, draw_curves
from ...pictures.files import save_image
from ...whole_file import write_whole

PACKAGES = {
    "tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio", "aim": "aim", "comet_ml": "comet_ml",
    "mlflow": "mlflow", "clearml": "clearml", "dvclive": "dvclive", "swanlab": "swanlab",
}  # fmt: skip
"""Tracker, as Accelerate calls it -> the package that it needs."""
_FIRST = ("step", "loss", "learning_rate", "seconds")
_MOST_BYTES = 100_000_000


@dataclass(eq=False)
class TrainingLog:
    """The table of a training, a row for each look."""

    folder: Path
    every: int
    """steps that one row's loss is averaged over"""
    rows: list[dict[str, float]] = field(default_factory=list)
    trackers: Sequence[Any] = ()
    _losses: list[float] = field(default_factory=list)

    @property
    def table(self) -> Path:
        return self.folder / "log.csv"

    @property
    def last_loss(self) -> float:
        """Of the newest row."""
        return self.rows[-1]["loss"] if self.rows else math.nan

    def go_on(self, step: int) -> None:
        """Take the rows of an earlier run, up to a step; a table that cannot be read is begun anew."""
        self.rows = [row for row in _rows_of(self.table) if row["step"] <= step]

    def add(self, step: int, loss: float, rate: float, seconds: float, figures: Mapping[str, float]) -> None:
        """Count a step; a row is made of it if it is time for one, or if there are figures."""
        self._losses.append(loss)
        if step % self.every and not figures:
            return
        mean = sum(self._losses) / len(self._losses)
        self._losses.clear()
        row = {"step": float(step), "loss": mean, "learning_rate": rate, "seconds": seconds, **figures}
        self.rows.append(row)
        for tracker in self.trackers:
            tracker.log({name: value for name, value in row.items() if name != "step"}, step=step)

    def write(self) -> None:
        """Write the table and the curves.

        Raises:
            OutputError: the disk is full; the training's checkpoint is not touched.
        """
        names = [*_FIRST, *sorted({name for row in self.rows for name in row} - set(_FIRST))]
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows([{name: _written(value) for name, value in row.items()} for row in self.rows])
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.table, text.getvalue())
        panels = self.panels()
        if panels:
            save_image(self.folder / "curves.png", draw_curves(panels, "step", "mean square error", title="Training"))

    def panels(self) -> dict[str, Curves]:
        """What the curves show: the loss, and held-out people at the highest noise that was probed."""
        found: dict[str, Curves] = {}
        if self.rows:
            found["all noise levels"] = {"training": [(row["step"], row["loss"]) for row in self.rows]}
        probed = sorted({name.rpartition(" at ")[2] for row in self.rows for name in row if " at " in name}, key=float)
        if probed:
            high = probed[-1]
            curves = {
                name: [(row["step"], row[key]) for row in self.rows if key in row]
                for name in ("right", "wrong", "mean", "base")
                for key in [f"{name} at {high}"]
            }
            found[f"held-out people at noise {high}"] = {name: points for name, points in curves.items() if points}
        return found

    def finish(self) -> None:
        """Tell the trackers that this is all."""
        for tracker in self.trackers:
            tracker.finish()


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that Accelerate does not know, or whose package is missing.

    Raises:
        ConfigError: an unknown name.
        MissingDependencyError: the package is not installed.
    """
    from accelerate.tracking import get_available_trackers

    there = {str(getattr(one, "value", one)) for one in get_available_trackers()}
    for name in names:
        if name not in PACKAGES:
            raise ConfigError(f"unknown tracker {name!r}; known: {', '.join(PACKAGES)}; log.csv is written in any case")
        if name not in there:
            raise MissingDependencyError(PACKAGES[name], f"pip install {PACKAGES[name].replace('_', '-')}")


def new_trackers(names: Sequence[str], run: str, folder: Path, settings: Mapping[str, Any]) -> list[Any]:
    """Accelerate's trackers of these names, told the settings; in the main process, once it knows that it is that.

    Raises:
        ConfigError, MissingDependencyError: as `check_trackers`.
    """
    check_trackers(names)
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    opened = []
    for name in names:
        kind: Any = LOGGER_TYPE_TO_CLASS[name]
        tracker = kind(run, logging_dir=folder) if kind.requires_logging_directory else kind(run)
        tracker.start() if hasattr(tracker, "start") else None
        tracker.store_init_configuration(_flat(settings))
        opened.append(tracker)
    return opened


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Trackers take numbers and texts only."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat


def _rows_of(path: Path) -> list[dict[str, float]]:
    """The rows of a table; none if it is not there, or is none of ours."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return []
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    except (OSError, UnicodeError, csv.Error):
        return []
    found = []
    for row in rows:
        try:
            values = {str(name): float(text) for name, text in row.items() if text not in ("", None)}
        except (TypeError, ValueError):
            return []
        known = all(name in _FIRST or re.fullmatch(r"\w+ at [0-9.]+", name) for name in values)
        if not (known and set(_FIRST) <= set(values) and all(map(math.isfinite, values.values()))):
            return []
        found.append(values)
    return found


def _written(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:.9g}"
