"""The state of a polishing run as a file, so that a stopped job goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...config import config_to_json
from ...errors import ConfigError, FileFormatError, quoted
from ...formats.container import read_container, read_names, write_container
from ...identity import Identity
from .trainable_adapters import TrainableAdapters

_KIND = "hyperdream-finetune-checkpoint"
_VERSION = 1
_MOMENTS = ("exp_avg", "exp_avg_sq")
_AS_IN_0_1_0 = (("rate_unit", "coefficient"),)
"""Settings that 0.1.0 did not have, at the values that do what it did: its jobs keep their digests."""
_REMEDY = "Remove it to polish from the beginning, or name another checkpoint."


@dataclass(eq=False)
class PolishRun:
    """The state of one training run over all rows."""

    adapters: TrainableAdapters
    optimizer: torch.optim.AdamW
    losses: list[Tensor]
    """per step (rows,)"""
    best: list[Tensor]
    """copies of the adapters' parameters; empty before the first look"""
    best_loss: Tensor
    """(rows,)"""
    looks_since: int = 0
    whole: list[Tensor] | None = None
    """copies of the adapters' parameters while a step changes them, those of the whole steps before it"""

    @torch.no_grad()
    def back_to_whole_steps(self) -> bool:
        """Take back what a broken step has changed of the adapters; whether there was nothing of that."""
        for parameter, before in zip(self.adapters.parameters(), self.whole or [], strict=False):
            parameter.copy_(before)
        return self.whole is None


@dataclass(frozen=True)
class PolishCheckpoint:
    """A checkpoint file of one job, or nothing at all if `path` is None."""

    path: Path | None
    job: str

    def save(self, run: PolishRun, step: int) -> None:
        """Write the state after `step` steps.

        Raises:
            OutputError: the folder cannot be written or the disk is full.
        """
        if self.path is None:
            return
        tensors: dict[str, Tensor] = {
            "step": torch.tensor([float(step)]),
            "losses": torch.stack(run.losses).cpu(),
            # Infinity, before the first look at the held-out crop, is not a number that files keep.
            "best_loss": run.best_loss.clamp(max=torch.finfo(torch.float32).max),
            "looks_since": torch.tensor([float(run.looks_since)]),
        }
        for index, parameter in enumerate(run.adapters.parameters()):
            tensors[f"parameter.{index}"] = parameter.detach()
            for name in _MOMENTS:
                tensors[f"{name}.{index}"] = run.optimizer.state[parameter][name]
            if run.best:
                tensors[f"best.{index}"] = run.best[index]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_container(self.path, _KIND, _VERSION, {"job": self.job}, tensors)

    @staticmethod
    def check_file(path: Path) -> None:
        """Refuse a file that is there and is no checkpoint: it would be refused, or replaced, after the first steps.

        Raises:
            FileFormatError: it is something else.
        """
        if path.exists() and read_names(path)[0].get("kind") != _KIND:
            raise FileFormatError(
                path, "is no checkpoint of polishing, and saving one would replace it. Name another file."
            )

    def is_begun(self) -> bool:
        """Whether there is a file, and it is of this very job.

        Raises:
            FileFormatError: the file is damaged or no checkpoint.
        """
        if self.path is None or not self.path.exists():
            return False
        return self._read(self.path)[0].get("job") == self.job

    @torch.no_grad()
    def load(self, run: PolishRun, steps: int) -> int:
        """Put the saved state into a run of so many steps and return its step; 0 if there is no file.

        Raises:
            FileFormatError: the file is damaged, altered or no checkpoint; the run is as it was.
            ConfigError: it belongs to another job.
        """
        if self.path is None or not self.path.exists():
            return 0
        metadata, tensors = self._read(self.path)
        if metadata.get("job") != self.job:
            raise ConfigError(
                f"{self.path.name} is the checkpoint of another job: other pictures, start or settings. Name another "
                "file, or remove it to begin anew"
            )
        step = _checked_step(self.path, tensors, run, steps)
        for index, parameter in enumerate(run.adapters.parameters()):
            parameter.copy_(tensors[f"parameter.{index}"])
            state: dict[str, Any] = {name: tensors[f"{name}.{index}"].to(parameter) for name in _MOMENTS}
            run.optimizer.state[parameter] = {"step": torch.tensor(float(step)), **state}
        run.best = [
            tensors[f"best.{index}"].to(parameter)
            for index, parameter in enumerate(run.adapters.parameters())
            if f"best.{index}" in tensors
        ]
        run.losses[:] = list(tensors["losses"].to(run.adapters.parameters()[0].device))
        run.best_loss, run.looks_since = tensors["best_loss"], int(tensors["looks_since"])
        return step

    def _read(self, path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
        try:
            return read_container(path, _KIND, _VERSION)
        except FileFormatError as error:
            raise FileFormatError(path, f"{error.problem.rstrip('.')}. {_REMEDY}") from error


def _checked_step(path: Path, tensors: Mapping[str, Tensor], run: PolishRun, steps: int) -> int:
    """The step of a checkpoint whose tensors are those of this run, in their shapes, with numbers it can have."""
    parameters = run.adapters.parameters()
    kinds = ("parameter", *_MOMENTS, *(["best"] if "best.0" in tensors else []))
    step = _whole(path, "step", tensors, 0, steps)
    _whole(path, "looks_since", tensors, 0, step)
    shapes: dict[str, tuple[int, ...]] = {"step": (1,), "looks_since": (1,)}
    shapes |= {"losses": (step, run.adapters.rows), "best_loss": (run.adapters.rows,)}
    shapes |= {f"{kind}.{index}": tuple(one.shape) for kind in kinds for index, one in enumerate(parameters)}
    for name in sorted({*shapes, *tensors}):
        if name not in tensors or name not in shapes:
            what = "lacks" if name in shapes else "has an unknown"
            raise FileFormatError(path, f"{what} tensor {quoted(name, 120)} for this job. It was altered. {_REMEDY}")
        tensor = tensors[name]
        if tuple(tensor.shape) != shapes[name] or (name[-1].isdigit() and torch.finfo(tensor.dtype).bits < 32):
            raise FileFormatError(
                path,
                f"tensor {name!r} is {tuple(tensor.shape)} of {tensor.dtype}, but {shapes[name]} of float32 is "
                f"expected at step {step}. It was altered. {_REMEDY}",
            )
        if name.partition(".")[0] in ("exp_avg_sq", "losses", "best_loss") and bool((tensor < 0).any()):
            raise FileFormatError(path, f"tensor {name!r} holds numbers below 0. It was altered. {_REMEDY}")
    return step


def _whole(path: Path, name: str, tensors: Mapping[str, Tensor], low: int, high: int) -> int:
    found = tensors[name].flatten().tolist() if name in tensors and tensors[name].numel() == 1 else []
    if not found or found[0] != int(found[0]) or not low <= found[0] <= high:
        raise FileFormatError(
            path,
            f"has {name} {quoted(found)}, but a whole number in {low}..{high} is expected. It was altered. {_REMEDY}",
        )
    return int(found[0])


def job_digest(config: Any, subjects: Sequence[tuple[Tensor, Sequence[str]]], starts: Sequence[Identity | None]) -> str:
    """SHA-256 (hex) of everything that decides what a job computes, but for the base."""
    settings = {name: value for name, value in config_to_json(config).items() if (name, value) not in _AS_IN_0_1_0}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for pictures, captions in subjects:
        digest.update(pictures.detach().float().cpu().contiguous().numpy().tobytes())
        digest.update(json.dumps(list(captions)).encode())
    for start in starts:
        digest.update(b"start" if start is not None else b"none")
        for coefficients in start.coefficients.values() if start is not None else ():
            digest.update(coefficients.down.contiguous().numpy().tobytes())
            digest.update(coefficients.up.contiguous().numpy().tobytes())
    return digest.hexdigest()
