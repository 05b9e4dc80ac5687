"""What a predictor's training will cost, from a few measured steps of it: time, memory, and room on the disk."""

from __future__ import annotations

import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from .loop import Moment
from .train_predictor import PredictorJob, train_predictor

MEASURED = 3
"""Steps that are timed, after one that warms up."""
_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cost of a training."""

    steps: int
    processes: int
    seconds_a_step: float
    seconds_of_looks: float
    """of all looks at held-out people together; grids are not in it"""
    memory_bytes: int
    """peak in one process: of the GPU, or else of the whole program"""
    memory_there: int
    """0 if it is not known"""
    corpus_bytes: Mapping[str, int]
    """of each part, for as many people as were asked for"""
    people: int
    checkpoint_bytes: int
    predictor_bytes: int
    disk_free: int
    problems: tuple[str, ...] = field(default=())
    """what does not fit, as sentences"""

    @property
    def hours(self) -> float:
        """From start to end."""
        return (self.steps * self.seconds_a_step + self.seconds_of_looks) / 3600

    @property
    def device_hours(self) -> float:
        """Of all processes together: GPU-hours."""
        return self.hours * self.processes

    def report(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "steps": self.steps, "processes": self.processes, "seconds_a_step": round(self.seconds_a_step, 4),
            "hours": round(self.hours, 3), "device_hours": round(self.device_hours, 3),
            "memory_bytes": self.memory_bytes, "memory_there": self.memory_there, "people": self.people,
            "corpus_bytes": dict(self.corpus_bytes), "checkpoint_bytes": self.checkpoint_bytes,
            "predictor_bytes": self.predictor_bytes, "disk_free": self.disk_free, "problems": list(self.problems),
        }  # fmt: skip

    def text(self) -> str:
        """For people."""
        there = f" of {self.memory_there / _GIB:,.1f}" if self.memory_there else ""
        parts = ", ".join(f"{name} {_size(count)}" for name, count in self.corpus_bytes.items())
        lines = [
            f"{self.steps:,} steps of {self.seconds_a_step:.3g} s: {self.hours:,.1f} hours on {self.processes} "
            f"process{'es' if self.processes > 1 else ''}, {self.device_hours:,.1f} device-hours",
            f"memory: {self.memory_bytes / _GIB:,.2f}{there} GiB in each process",
            f"corpus of {self.people:,} people: {parts}",
            f"checkpoint {_size(self.checkpoint_bytes)}, predictor {_size(self.predictor_bytes)}; "
            f"{_size(self.disk_free)} free",
            *(f"does not fit: {problem}" for problem in self.problems),
        ]
        return "\n".join(lines)


class _EnoughError(Exception):
    """The steps that were to be measured are over."""


def measure(job: PredictorJob, processes: int = 1, people: int = 0) -> Plan:
    """The plan of a job, from a few steps of one process's share of it; the job's own folder is left alone.

    Args:
        job: what is to be trained.
        processes: that will share each step; the others are taken to be as fast, and their messages to cost nothing.
        people: that the corpus is to have; as many as it has by default.

    Raises:
        ConfigError, BaseMismatchError, MissingDependencyError: as the training itself.
    """
    share = math.ceil(job.config.batch / processes)
    config = replace(job.config, batch=share, micro_batch=min(job.config.micro_batch, share), trackers=())
    times: list[float] = []
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="hyperdream-plan-") as folder:
        quiet = replace(config, look_every=0, grid_every=0)
        short = replace(job, config=quiet, work=Path(folder))
        _reset_peak(job.base.device)
        try:
            train_predictor(short, also=lambda moment: _timed(moment, times))
        except _EnoughError:
            pass
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            problems.append(_too_large(job, config.micro_batch or share))
        checkpoint = short.checkpoint.stat().st_size if short.checkpoint.exists() else 0
    seconds = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
    looks, memory = _seconds_of_looks(job, seconds), _peak(job.base.device)
    network = job.new_network()
    file = 2 * sum(tensor.numel() for tensor in network.state_dict().values())
    free = shutil.disk_usage(next(one for one in (job.work, *job.work.absolute().parents) if one.exists())).free
    if 2 * checkpoint + file > free:
        problems.append(
            f"checkpoint and predictor may take {_size(2 * checkpoint + file)} in {job.work}, and {_size(free)} are "
            "free; name another --work folder"
        )
    count = people or len(job.corpus)
    sizes = {part: round(record.bytes * count / len(job.corpus)) for part, record in job.corpus.parts.items()}
    return Plan(
        steps=job.config.steps, processes=processes, seconds_a_step=seconds, seconds_of_looks=looks,
        memory_bytes=memory, memory_there=_memory_there(job.base.device), corpus_bytes=sizes, people=count,
        checkpoint_bytes=checkpoint, predictor_bytes=file, disk_free=free, problems=tuple(problems),
    )  # fmt: skip


def _timed(moment: Moment, times: list[float]) -> None:
    times.append(time.perf_counter())
    if len(times) > MEASURED:
        raise _EnoughError


def _seconds_of_looks(job: PredictorJob, seconds: float) -> float:
    """A look has no backward pass: about a third of a step for as many pictures, at three levels and four kinds."""
    config, people = job.config, min(job.config.probed, len(job.corpus.held_out))
    if not config.look_every:
        return 0.0
    return config.steps // config.look_every * 10 * seconds / 3 * people / (config.batch * config.pictures)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    # Bytes on macOS, kilobytes elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _memory_there(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return 0


def _too_large(job: PredictorJob, at_once: int) -> str:
    there = _memory_there(job.base.device)
    limit = f"{there / _GIB:,.1f} GiB" if there else "the memory"
    smaller = f"--micro-batch {max(1, at_once // 2)}, " if at_once > 1 else ""
    return (
        f"{at_once} subjects with {job.config.pictures} pictures each do not fit in {limit}; use {smaller}--recompute "
        "or --dtype bf16"
    )


def _is_out_of_memory(error: Exception) -> bool:
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
