"""Finished rows of a trial, kept in a folder, so that an interrupted trial goes on and a longer one adds to it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ...config import config_to_json
from ...errors import FileFormatError
from ...json_text import read_json
from ...pipelines.polishing.polish_config import PolishConfig
from ...pipelines.scores import Interval, MethodScores
from ...whole_file import check_writable, make_folder, write_whole
from .config import TrialConfig

_BY_PERSON = ("similarity_by_person", "attributes_by_person")
_LARGEST_ROW = 20_000_000  # bytes; a person takes 45

_LARGEST_NUMBER = 1e12
"""of seconds; all others are shares and cosines"""


def trial_digest(config: TrialConfig, weights: Path) -> str:
    """SHA-256 (hex) of all that a row's figures depend on: settings, polishing's own, weights; not the other rows."""
    settings = [config_to_json(one) for one in (replace(config, methods=("base",)), PolishConfig())]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in sorted(weights.rglob("*.safetensors")):
        digest.update(str(path.relative_to(weights)).encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def check_rows(folder: Path) -> None:
    """See, before anything is measured, that rows can be kept there.

    Raises:
        OutputError: they cannot.
    """
    check_writable(_path(folder, "base"))


def keep_row(folder: Path, digest: str, row: MethodScores) -> None:
    """Write a finished row.

    Raises:
        OutputError: the folder cannot be written or the disk is full.
    """
    entry: dict[str, Any] = {"trial": digest, **asdict(row)}
    for name in _BY_PERSON:
        entry[name] = entry[name].tolist()
    path = _path(folder, row.name)
    make_folder(path.parent)
    write_whole(path, json.dumps(entry))


def kept_row(folder: Path, digest: str, method: str, people: int | None = None) -> MethodScores | None:
    """The row of an earlier run of the same trial; None if there is none.

    Args:
        folder: where rows are kept.
        digest: of the trial.
        method: which row.
        people: how many it must be of.
    """
    try:
        entry = read_json(_path(folder, method), most=_LARGEST_ROW)
        if entry.pop("trial") != digest or entry["name"] != method:
            return None
        for name in ("similarity", "attributes", "copy"):
            entry[name] = Interval(**{key: _number(value) for key, value in entry[name].items()})
        for name in ("top1", "seconds"):
            _number(entry[name])
        entry["per_attribute"] = {key: _number(value) for key, value in entry["per_attribute"].items()}
        counts = {len(entry[name]) for name in _BY_PERSON}
        if len(counts) > 1 or (people is not None and counts != {people}):
            return None
        for name in _BY_PERSON:
            entry[name] = torch.tensor([_number(value) for value in entry[name]])
        return MethodScores(**entry)
    except (FileFormatError, KeyError, TypeError, AttributeError, OverflowError):
        # Nothing there, or nothing that a trial has written: measured anew.
        return None


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _LARGEST_NUMBER:
        raise TypeError("no number of a row")
    return float(value)


def _path(folder: Path, method: str) -> Path:
    return folder / "rows" / (re.sub(r"[^a-z0-9+=]+", "-", method) + ".json")
