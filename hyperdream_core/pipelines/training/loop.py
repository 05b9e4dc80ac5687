"""One training loop for every network here: budgeted by steps, resumable, the same on one process or many.

A stage hands over an *objective*, a module whose forward turns a batch into a loss, and a function that
draws a batch from a generator. Everything random at step k comes from generators seeded with (seed, k) and nothing
else that changes from run to run, so that a resumed run continues exactly where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...ops.finite import is_finite
from ..undivided import ended_like_stopped, undivided
from .checkpoint import TrainingCheckpoint, shares_of
from .launch import is_main_process, launch
from .schedule import CYCLE_SEEDS, TrainingConfig, deciding, learning_rate, step_generator
from .together import Team

__all__ = ["Drawn", "Moment", "TrainingConfig", "is_main_process", "launch", "learning_rate", "step_generator", "train"]

Progress = Callable[[int, int], None]


class Drawn(Protocol):
    """What one step is about, for all of its rows: drawn alike in every process, and made into numbers row by row."""

    def rows(self, chosen: range) -> Any:
        """The batch of these rows, as the objective takes it."""
        ...


@dataclass(frozen=True)
class Moment:
    """A training between two steps, for whoever watches it."""

    step: int
    """steps taken"""
    steps: int
    """of the whole training"""
    loss: float
    """of the last step, over all processes"""
    learning_rate: float
    """of the last step"""
    averaged: Callable[[], AbstractContextManager[None]]
    """opens a context in which the objective holds the averaged weights"""
    is_main: bool
    """whether this process is the one that writes files"""


Watch = Callable[[Moment], None]


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
    watch: Watch | None = None,
) -> list[float]:
    """Train the objective's parameters that require gradients; leave it holding the averaged weights.

    Args:
        objective: called as objective(batch, generator), gives a scalar loss, the mean over the batch's rows. Where it
            has a method `held`, the context that this returns is open from before the call until the gradient is there.
        draw_batch: called with the step's generator, gives a batch; or, if the config names a batch, `Drawn`.
        config: budget of a cycle, and optimiser.
        checkpoint: file to save to and resume from; a finished one is loaded and nothing is trained. It goes on bit
            for bit on as many processes as it was saved by, and up to rounding on any other number.
        progress: called with (step, steps) between steps, in the main process; raising there stops cleanly after a
            save.
        device: where the objective lives; batches are the objective's own business.
        cycles: warm restarts, the first start counted: each later one departs from the averaged weights with a fresh
            optimiser. A finished training is taken further by one more.
        made_by: JSON values of whatever else decides the result, such as the data's settings; a checkpoint of others
            is refused.
        on_step: called with (step, steps) before every step, in every process: for an objective that changes with
            time.
        watch: called after every step, in every process, once it is saved if it is to be.

    Returns:
        The loss of every step taken in this call, over all processes, after those of the last steps that the
        checkpoint kept.

    Raises:
        ConfigError: the checkpoint is of a longer training, or of other settings; the training diverges.
        FileFormatError: the checkpoint is damaged, or of another training.
        OutputError: the checkpoint cannot be written there.
        StoppedWithAnother: another process has failed.

    Source: warm restarts are SGDR's, arXiv:1608.03983.
    """
    team = Team(device, config.precision)
    objective.to(device)
    trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    optimizer = _new_optimizer(trained, config)
    averaged = {name: p.detach().clone() for name, p in trained.items()}
    settings: dict[str, Any] = {**(made_by or {}), "training": deciding(config)}
    shares = 0
    if not config.batch:
        # So many processes began it, and so many batches a step has, whoever computes them.
        shares = settings["processes"] = shares_of(checkpoint) or team.size
    saved = TrainingCheckpoint(checkpoint, settings, trained, averaged, optimizer)
    if team.accelerator.scaler is not None:
        saved.scaler = team.accelerator.scaler
    with undivided():
        # Within a library's reading an interrupt comes out as another error.
        first, total = saved.resume(), cycles * config.steps
    if first > total:
        raise ConfigError(f"{checkpoint} holds {first} steps, {total} are asked for; ask for more, or delete it")
    if first < total and team.is_main:
        saved.check_place()
    team.copy_from_main([*trained.values(), *averaged.values()])
    called = torch.compile(objective, backend=config.compiler) if config.compiler else objective
    objective.train()
    run = _Run(objective, called, draw_batch, config, trained, averaged, optimizer, team, shares, first, saved.losses)
    if first < total:
        _take_steps(run, total, _Around(saved if team.is_main else None, progress, on_step, watch))
    team.wait()
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


@dataclass(frozen=True)
class _Around:
    """What happens around the steps."""

    saved: TrainingCheckpoint | None
    """in the main process only"""
    progress: Progress | None
    on_step: Progress | None
    watch: Watch | None

    def before(self, run: _Run, total: int) -> None:
        if self.progress is not None and run.team.is_main:
            self.progress(run.done, total)
        if self.on_step is not None:
            self.on_step(run.done, total)

    def after(self, run: _Run, total: int) -> None:
        if self.saved is not None and (run.done % run.config.save_every == 0 or run.done == total):
            self.saved.save(run.done)
        if self.watch is not None:
            self.watch(run.moment(total))


def _take_steps(run: _Run, total: int, around: _Around) -> None:
    """Take the steps that are left, and save in between, at the end and when stopped.

    Whatever stops this process is carried to the next moment at which all processes agree on going on.
    """
    first, stop, is_over = run.done, None, False
    try:
        with ended_like_stopped():
            while True:
                loss = 0.0
                try:
                    if stop is None and run.done < total:
                        around.before(run, total)
                        loss = run.add_gradients()
                except BaseException as error:
                    stop = error
                try:
                    with undivided():
                        loss = run.team.agree(stop, loss)
                        is_over = run.done == total
                        if is_over:
                            break
                        run.update(loss)
                    around.after(run, total)
                except BaseException as error:
                    if run.team.size == 1 or run.team.has_agreed_to_stop or is_over or not run.is_whole:
                        raise
                    stop = error
    except BaseException:
        if around.saved is not None and run.done > first and run.is_whole:
            around.saved.save(run.done)
        if run.team.has_agreed_to_stop:
            # Whoever is first to leave takes the others along, and one of them may be writing.
            run.team.wait()
        raise


@dataclass(eq=False)
class _Run:
    """One process's share of a training."""

    objective: nn.Module
    called: Any
    """the objective itself, or compiled"""
    draw_batch: Callable[[torch.Generator], Any]
    config: TrainingConfig
    trained: Mapping[str, nn.Parameter]
    averaged: Mapping[str, Tensor]
    optimizer: torch.optim.AdamW
    team: Team
    shares: int
    """batches that a step draws, each from a generator of its own; 0 if it is one of so many rows"""
    done: int
    """steps, counted over all cycles"""
    losses: list[float] = field(default_factory=list)
    is_whole: bool = True
    """no step has failed while it changed the weights"""

    def __post_init__(self) -> None:
        self.stepped: Any = self.optimizer
        if self.team.accelerator.scaler is not None:
            self.stepped = self.team.accelerator.prepare_optimizer(self.optimizer)

    def add_gradients(self) -> float:
        """Leave the gradient of this process's share of a step; until all is there, nothing has changed.

        Returns:
            This share's part of the mean loss.
        """
        config, (cycle, in_cycle) = self.config, divmod(self.done, self.config.steps)
        if cycle and not in_cycle:
            with undivided():
                _restore(self.trained, self.averaged)
                self.optimizer.state.clear()
        for parameter in self.trained.values():
            parameter.grad = None
        seed, total = config.seed + CYCLE_SEEDS * cycle, config.batch or self.shares
        share, loss = self.team.share_of(total), 0.0
        generator = step_generator(seed, in_cycle)
        drawn = self.draw_batch(generator) if config.batch else None
        at_once = (config.micro_batch or max(1, len(share))) if config.batch else 1
        for start in range(share.start, share.stop, at_once):
            rows = range(start, min(start + at_once, share.stop))
            if drawn is None:
                generator = step_generator(seed, in_cycle, start, self.shares)
            batch = self.draw_batch(generator) if drawn is None else drawn.rows(rows)
            loss += self._backward(batch, generator, len(rows) / total)
        return loss

    def update(self, loss: float) -> None:
        """Change the weights by the gradients of all processes.

        Raises:
            ConfigError: the loss, or the gradient, is not finite.
        """
        config, step, team = self.config, self.done, self.team
        team.add_gradients(self.trained.values())
        norm: Any = team.accelerator.clip_grad_norm_(list(self.trained.values()), config.clip)
        scaler = team.accelerator.scaler
        # The scaler looks for its scale by overflowing now and then; below 1 there is nothing left to look for.
        may_overflow = scaler is not None and scaler.get_scale() > 1.0
        if not is_finite(torch.tensor(loss), None if may_overflow else torch.as_tensor(norm)):
            raise ConfigError(
                f"training diverged at step {step}: its loss or gradient is not finite; use a learning_rate below "
                f"{config.learning_rate}, and see whether what it is trained on is sound"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        self.is_whole = False
        self.stepped.step()
        self.optimizer.zero_grad(set_to_none=True)
        in_cycle = step % config.steps
        _average(self.averaged, self.trained, 1.0 / (1.0 + min(in_cycle, config.ema_share * config.steps)))
        self.losses.append(loss)
        self.done, self.is_whole = step + 1, True

    def moment(self, total: int) -> Moment:
        """For whoever watches."""
        rate = learning_rate(self.done - 1, self.config)
        return Moment(self.done, total, self.losses[-1], rate, self._with_averages, self.team.is_main)

    def _backward(self, batch: Any, generator: torch.Generator, weight: float) -> float:
        held = getattr(self.objective, "held", nullcontext)
        with held():
            with self.team.accelerator.autocast():
                loss: Tensor = self.called(batch, generator)
            loss = loss.float() * weight
            self.team.accelerator.backward(loss)
        return float(loss.detach())

    @contextmanager
    def _with_averages(self) -> Iterator[None]:
        own = {name: p.detach().clone() for name, p in self.trained.items()}
        try:
            _restore(self.trained, self.averaged)
            yield
        finally:
            with undivided():
                _restore(self.trained, own)


@torch.no_grad()
def _average(averaged: Mapping[str, Tensor], trained: Mapping[str, nn.Parameter], share: float) -> None:
    for name, parameter in trained.items():
        averaged[name].lerp_(parameter, share)


@torch.no_grad()
def _restore(trained: Mapping[str, nn.Parameter], averaged: Mapping[str, Tensor]) -> None:
    for name, parameter in trained.items():
        parameter.copy_(averaged[name])
