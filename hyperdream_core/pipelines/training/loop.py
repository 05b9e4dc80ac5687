"""One training loop for every network here: budgeted by steps, resumable, the same on one process or many.

A stage hands over an *objective*, a module whose forward turns a batch into a loss, and a function that
draws a batch from a generator. Everything random at step k comes from generators seeded with (seed, k, process), so
that a resumed run continues exactly where it stopped. Several processes are Accelerate's business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError, FileFormatError
from ...formats.container import read_container, write_container

Progress = Callable[[int, int], None]
CHECKPOINT = "training-checkpoint"
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

    Returns:
        The loss of every step taken in this call, on this process.

    Raises:
        ConfigError: the checkpoint is of a longer training.
        FileFormatError: the checkpoint is damaged, or of another training.

    Source: warm restarts are SGDR's, arXiv:1608.03983.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs

    # A hypernetwork that refines once does not use what feeds its coefficients back.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(cpu=torch.device(device).type == "cpu", kwargs_handlers=[unused])
    objective.to(device)
    trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        trained.values(), lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
    )
    averaged = {name: p.detach().clone() for name, p in trained.items()}
    first, total = _resume(checkpoint, trained, averaged, optimizer), cycles * config.steps
    if first > total:
        raise ConfigError(f"{checkpoint} holds {first} steps, {total} are asked for; ask for more, or delete it")
    wrapped = accelerator.prepare(objective) if accelerator.num_processes > 1 else objective
    wrapped.train()
    run = _Run(wrapped, draw_batch, config, trained, averaged, optimizer, accelerator.process_index)
    losses: list[float] = []
    step = first
    try:
        for step in range(first, total):
            if progress is not None and accelerator.is_main_process:
                progress(step, total)
            losses.append(run.step(step))
            if (step + 1) % config.save_every == 0 and accelerator.is_main_process:
                _save(checkpoint, step + 1, trained, averaged, optimizer)
    except BaseException:
        if accelerator.is_main_process and step > first:
            _save(checkpoint, step, trained, averaged, optimizer)
        raise
    if accelerator.is_main_process and first < total:
        _save(checkpoint, total, trained, averaged, optimizer)
    accelerator.wait_for_everyone()
    _restore(trained, averaged)
    return losses


@dataclass(frozen=True, eq=False)
class _Run:
    """One process's share of a training."""

    objective: nn.Module
    draw_batch: Callable[[torch.Generator], Any]
    config: TrainingConfig
    trained: Mapping[str, nn.Parameter]
    averaged: Mapping[str, Tensor]
    optimizer: torch.optim.AdamW
    process: int

    def step(self, step: int) -> float:
        """Take one optimiser step, counted over all cycles, and return its loss."""
        config = self.config
        cycle, in_cycle = divmod(step, config.steps)
        if cycle and not in_cycle:
            _restore(self.trained, self.averaged)
            self.optimizer.state.clear()
        generator = step_generator(config.seed + CYCLE_SEEDS * cycle, in_cycle, self.process)
        loss = self.objective(self.draw_batch(generator), generator)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained.values(), config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        _average(self.averaged, self.trained, 1.0 / (1.0 + min(in_cycle, config.ema_share * config.steps)))
        return float(loss.detach())


def launch(function: Callable[..., None], arguments: tuple[Any, ...], processes: int) -> None:
    """Run `function(*arguments)` in one process, or in several that average their gradients."""
    if processes == 1:
        function(*arguments)
        return
    from accelerate import debug_launcher
    from accelerate.state import AcceleratorState

    # Whoever has trained in one process before has left a state that says so, and forked processes would believe it.
    AcceleratorState._reset_state(reset_partial_state=True)
    debug_launcher(function, args=arguments, num_processes=processes)


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


def _save(
    path: Path, step: int, trained: dict[str, nn.Parameter], averaged: dict[str, Tensor], optimizer: torch.optim.AdamW
) -> None:
    tensors: dict[str, Tensor] = {"step": torch.tensor([float(step)])}
    for name, parameter in trained.items():
        state = optimizer.state.get(parameter, {})
        tensors[f"weight/{name}"] = parameter.detach()
        tensors[f"average/{name}"] = averaged[name]
        for key in ("exp_avg", "exp_avg_sq", "step"):
            if key in state:
                tensors[f"{key}/{name}"] = torch.as_tensor(state[key]).float()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_container(path, CHECKPOINT, 1, {}, tensors)


@torch.no_grad()
def _resume(
    path: Path, trained: dict[str, nn.Parameter], averaged: dict[str, Tensor], optimizer: torch.optim.AdamW
) -> int:
    if not path.exists():
        return 0
    _, tensors = read_container(path, CHECKPOINT, 1)
    step = _checked_step(path, tensors, trained)
    for name, parameter in trained.items():
        parameter.copy_(tensors[f"weight/{name}"])
        averaged[name].copy_(tensors[f"average/{name}"])
        if f"exp_avg/{name}" in tensors:
            optimizer.state[parameter] = {
                key: tensors[f"{key}/{name}"].to(parameter.device if key != "step" else "cpu")
                for key in ("exp_avg", "exp_avg_sq", "step")
            }
    return step


def _checked_step(path: Path, tensors: Mapping[str, Tensor], trained: Mapping[str, nn.Parameter]) -> int:
    """The step a checkpoint was saved at, once everything in it has been seen to be of this training."""
    shapes: dict[str, tuple[int, ...]] = {"step": (1,)}
    for name, parameter in trained.items():
        shapes |= dict.fromkeys((f"weight/{name}", f"average/{name}"), tuple(parameter.shape))
        if any(f"{key}/{name}" in tensors for key in ("exp_avg", "exp_avg_sq", "step")):
            shapes |= dict.fromkeys((f"exp_avg/{name}", f"exp_avg_sq/{name}"), tuple(parameter.shape))
            shapes[f"step/{name}"] = ()
    for name in sorted({*shapes, *tensors}):
        if name not in tensors or name not in shapes:
            what = "lacks" if name in shapes else "has an unknown"
            raise FileFormatError(
                path, f"{what} tensor {name!r} for this training. Name the checkpoint of this one, or remove the file."
            )
        if tuple(tensors[name].shape) != shapes[name]:
            raise FileFormatError(
                path,
                f"tensor {name!r} has the shape {tuple(tensors[name].shape)}, but this training needs {shapes[name]}. "
                "Name the checkpoint of this one, or remove the file.",
            )
    step = float(tensors["step"])
    if not (step >= 0 and step == int(step)):
        raise FileFormatError(
            path, f"holds step {step:g}, but a whole number of 0 or more is expected. It was altered; remove it."
        )
    return int(step)
