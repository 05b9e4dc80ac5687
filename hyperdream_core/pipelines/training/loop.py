"""One training loop for every network here: budgeted by steps, resumable, the same on one process or many.

A stage hands over an *objective*, a module whose forward turns a batch into a loss, and a function that
draws a batch from a generator. Everything random at step k comes from generators seeded with (seed, k, process), so
that a resumed run continues exactly where it stopped. Several processes are Accelerate's business.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...config import config_to_json
from ...errors import ConfigError, HyperDreamError, OutputError
from ...ops.finite import is_finite
from ..undivided import ended_like_stopped, undivided
from .checkpoint import TrainingCheckpoint

Progress = Callable[[int, int], None]
GRACE = 10.0
"""Seconds in which processes that may have been interrupted themselves save what they have."""
CYCLE_SEEDS = 1000
"""Between the seeds of two cycles, so that the second does not see the first one's batches again."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of one training run."""

    steps: int
    """Optimiser steps of one cycle."""
    learning_rate: float = 1e-3
    """Peak learning rate of the first cycle; warmed up linearly, then decayed along a cosine."""
    cycle_decay: float = 0.7
    """Peak learning rate of a cycle over that of the one before."""
    warmup: int = 100
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's averaging horizons; 0.99 follows short runs better than 0.999."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    ema_share: float = 0.06
    """Averaging horizon of the weights as a share of a cycle's steps; longer lags behind in short runs."""
    seed: int = 0
    """Seed of data order, noise and dropout."""
    save_every: int = 200
    """Steps between checkpoints; the last one is kept."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps must be 1 or more, got {self.steps}")
        if not 0.0 < self.learning_rate < 1.0:
            raise ConfigError(f"learning_rate must lie between 0 and 1, got {self.learning_rate}")


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Learning rate at a step, counted over all cycles: in each a linear warm-up, then half a cosine."""
    cycle, step = divmod(step, config.steps)
    peak = config.learning_rate * config.cycle_decay**cycle
    if step < config.warmup:
        return peak * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def step_generator(seed: int, step: int, process: int = 0) -> torch.Generator:
    """The generator of one step of one process."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 64 + process)


def train(
    objective: nn.Module,
    draw_batch: Callable[[torch.Generator], Any],
    config: TrainingConfig,
    checkpoint: Path,
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
    cycles: int = 1,
    made_by: Mapping[str, Any] | None = None,
    on_step: Progress | None = None,
) -> list[float]:
    """Train the objective's parameters that require gradients; leave it holding the averaged weights.

    Args:
        objective: called as objective(batch, generator), gives a scalar loss.
        draw_batch: called with the step's generator.
        config: budget of a cycle, and optimiser.
        checkpoint: file to save to and resume from; a finished one is loaded and nothing is trained.
        progress: called with (step, steps) between steps, in the main process; raising there stops cleanly after a
            save.
        device: where the objective lives; batches are the objective's own business.
        cycles: warm restarts, the first start counted: each later one departs from the averaged weights with a fresh
            optimiser. A finished training is taken further by one more.
        made_by: JSON values of whatever else decides the result, such as the data's settings; a checkpoint of others
            is refused.
        on_step: called with (step, steps) before every step, in every process: for an objective that changes with
            time.

    Returns:
        The loss of every step taken in this call, on this process, after those of the last steps that the checkpoint
        kept.

    Raises:
        ConfigError: the checkpoint is of a longer training, or of other settings.
        FileFormatError: the checkpoint is damaged, or of another training.
        OutputError: the checkpoint cannot be written there.

    Source: warm restarts are SGDR's, arXiv:1608.03983.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs

    # A hypernetwork that refines once does not use what feeds its coefficients back.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(cpu=torch.device(device).type == "cpu", kwargs_handlers=[unused])
    objective.to(device)
    trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    optimizer = _new_optimizer(trained, config)
    averaged = {name: p.detach().clone() for name, p in trained.items()}
    settings = {**(made_by or {}), "training": _deciding(config), "processes": accelerator.num_processes}
    saved = TrainingCheckpoint(checkpoint, settings, trained, averaged, optimizer)
    with undivided():
        # Within a library's reading an interrupt comes out as another error.
        first, total = saved.resume(), cycles * config.steps
    if first > total:
        raise ConfigError(f"{checkpoint} holds {first} steps, {total} are asked for; ask for more, or delete it")
    if first < total and accelerator.is_main_process:
        saved.check_place()
    wrapped = accelerator.prepare(objective) if accelerator.num_processes > 1 else objective
    wrapped.train()
    process = accelerator.process_index
    run = _Run(wrapped, draw_batch, config, trained, averaged, optimizer, process, first, saved.losses)
    if first < total:
        is_main = accelerator.is_main_process
        _take_steps(run, total, progress if is_main else None, saved if is_main else None, on_step)
    accelerator.wait_for_everyone()
    _restore(trained, averaged)
    return run.losses


def _new_optimizer(trained: Mapping[str, nn.Parameter], config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW, in one kernel where this torch has one for the device: on a CPU from 2.4 on, and several times faster."""
    settings: dict[str, Any] = {
        "lr": config.learning_rate, "betas": config.betas, "weight_decay": config.weight_decay
    }  # fmt: skip
    try:
        return torch.optim.AdamW(trained.values(), **settings, fused=True)
    except RuntimeError:
        return torch.optim.AdamW(trained.values(), **settings)


def _take_steps(
    run: _Run,
    total: int,
    progress: Progress | None,
    saved: TrainingCheckpoint | None,
    on_step: Progress | None,
) -> None:
    """Take the steps that are left, and save in between, at the end and when stopped."""
    first = run.done
    try:
        with ended_like_stopped():
            while run.done < total:
                if progress is not None:
                    progress(run.done, total)
                if on_step is not None:
                    on_step(run.done, total)
                run.step()
                if saved is not None and (run.done % run.config.save_every == 0 or run.done == total):
                    saved.save(run.done)
    except BaseException:
        if saved is not None and run.done > first and run.is_whole:
            saved.save(run.done)
        raise


@dataclass(eq=False)
class _Run:
    """One process's share of a training."""

    objective: nn.Module
    draw_batch: Callable[[torch.Generator], Any]
    config: TrainingConfig
    trained: Mapping[str, nn.Parameter]
    averaged: Mapping[str, Tensor]
    optimizer: torch.optim.AdamW
    process: int
    done: int
    """steps, counted over all cycles"""
    losses: list[float] = field(default_factory=list)
    is_whole: bool = True
    """no step has failed while it changed the weights"""

    def step(self) -> None:
        """Take one optimiser step; until its gradient is there, nothing has changed, and it can be taken again."""
        config, step = self.config, self.done
        cycle, in_cycle = divmod(step, config.steps)
        if cycle and not in_cycle:
            with undivided():
                _restore(self.trained, self.averaged)
                self.optimizer.state.clear()
        generator = step_generator(config.seed + CYCLE_SEEDS * cycle, in_cycle, self.process)
        loss = self.objective(self.draw_batch(generator), generator)
        loss.backward()
        if not is_finite(loss.detach(), nn.utils.clip_grad_norm_(self.trained.values(), config.clip)):
            raise ConfigError(
                f"training diverged at step {step}: its loss or gradient is not finite; use a learning_rate below "
                f"{config.learning_rate}, and see whether what it is trained on is sound"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        value = float(loss.detach())
        with undivided():
            self.is_whole = False
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            _average(self.averaged, self.trained, 1.0 / (1.0 + min(in_cycle, config.ema_share * config.steps)))
            self.losses.append(value)
            self.done, self.is_whole = step + 1, True


def launch(function: Callable[..., None], arguments: tuple[Any, ...], processes: int) -> None:
    """Run `function(*arguments)` in one process, or in several that average their gradients.

    Raises:
        HyperDreamError: what one of the processes refused, or that one has ended without a word.
    """
    if processes == 1:
        function(*arguments)
        return
    from accelerate import debug_launcher
    from accelerate.state import AcceleratorState
    from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

    # Whoever has trained in one process before has left a state that says so, and forked processes would believe it.
    AcceleratorState._reset_state(reset_partial_state=True)
    with tempfile.TemporaryDirectory(prefix="hyperdream-") as folder, _stopping_children(), ended_like_stopped():
        try:
            debug_launcher(_run_and_report, args=(function, arguments, folder), num_processes=processes)
        except (ProcessRaisedException, ProcessExitedException) as error:
            # The first to refuse is the cause; the others miss it.
            refusals = sorted(Path(folder).glob("*.txt"), key=lambda path: path.stat().st_mtime_ns)
            if refusals:
                kind, _, text = refusals[0].read_text(encoding="utf-8").partition(" ")
                raise _REFUSALS.get(kind, HyperDreamError)(text) from error
            if isinstance(error, ProcessExitedException):
                raise HyperDreamError(
                    f"one of the {processes} processes was ended from outside ({error}); run the same again: it goes "
                    "on from the last checkpoint"
                ) from error
            raise


@contextmanager
def _stopping_children() -> Iterator[None]:
    """Where this process is interrupted alone, stop those that it has started, and let them save what they have."""
    before = set(multiprocessing.active_children())
    try:
        yield
    except KeyboardInterrupt:
        children = set(multiprocessing.active_children()) - before
        # Ctrl-C on a terminal reaches them too, and another signal would end them while they save.
        for wait, number in ((GRACE, signal.SIGINT), (60.0, signal.SIGTERM)):
            for child in children:
                child.join(wait)
                if child.is_alive() and child.pid:
                    os.kill(child.pid, number)
        for child in children:
            child.join(10.0)
        raise


_REFUSALS: dict[str, type[HyperDreamError]] = {one.__name__: one for one in (ConfigError, OutputError)}
"""What can be raised again from its text alone."""


def _run_and_report(function: Callable[..., None], arguments: tuple[Any, ...], folder: str) -> None:
    """In a process of several: errors of ours reach the parent as a text, which is all that passes between them."""
    try:
        function(*arguments)
    except HyperDreamError as error:
        text = f"{type(error).__name__} {error}"
        (Path(folder) / f"{os.getpid()}.txt").write_text(text, encoding="utf-8", errors="backslashreplace")
        raise


def is_main_process() -> bool:
    """Whether this process, of those started by `launch`, is the one that writes files."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


@torch.no_grad()
def _average(averaged: Mapping[str, Tensor], trained: Mapping[str, nn.Parameter], share: float) -> None:
    for name, parameter in trained.items():
        averaged[name].lerp_(parameter, share)


@torch.no_grad()
def _restore(trained: Mapping[str, nn.Parameter], averaged: Mapping[str, Tensor]) -> None:
    for name, parameter in trained.items():
        parameter.copy_(averaged[name])


def _deciding(config: TrainingConfig) -> dict[str, Any]:
    """The settings that decide a training's result: all but how often it is saved."""
    return {name: value for name, value in config_to_json(config).items() if name != "save_every"}
