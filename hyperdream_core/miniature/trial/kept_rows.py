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
from ...pipelines.polishing.polish import PolishConfig
from ...pipelines.scores import Interval, MethodScores
from ...whole_file import write_whole
from .config import TrialConfig


def trial_digest(config: TrialConfig, weights: Path) -> str:
    """SHA-256 (hex) of all that a row's figures depend on: settings, polishing's own, weights; not the other rows."""
    settings = [config_to_json(one) for one in (replace(config, methods=("base",)), PolishConfig())]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in sorted(weights.rglob("*.safetensors")):
        digest.update(str(path.relative_to(weights)).encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def keep_row(folder: Path, digest: str, row: MethodScores) -> None:
    """Write a finished row."""
    entry: dict[str, Any] = {"trial": digest, **asdict(row)}
    for name in ("similarity_by_person", "attributes_by_person"):
        entry[name] = entry[name].tolist()
    path = _path(folder, row.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(entry))


def kept_row(folder: Path, digest: str, method: str) -> MethodScores | None:
    """The row of an earlier run of the same trial; None if there is none."""
    try:
        entry = json.loads(_path(folder, method).read_text(encoding="utf-8"))
        if entry.pop("trial") != digest:
            return None
        for name in ("similarity", "attributes", "copy"):
            entry[name] = Interval(**entry[name])
        for name in ("similarity_by_person", "attributes_by_person"):
            entry[name] = torch.tensor(entry[name])
        return MethodScores(**entry)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # Nothing there, or nothing that a trial has written: measured anew.
        return None


def _path(folder: Path, method: str) -> Path:
    return folder / "rows" / (re.sub(r"[^a-z0-9+=]+", "-", method) + ".json")
