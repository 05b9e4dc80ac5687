"""Polishing: a fresh adapter of higher rank on top of a predicted identity, trained on its pictures.

The prediction stays as it is and runs live, so the base's weights are never touched; only the fresh coefficients
are trained, for a few dozen steps. Without a prediction the same code polishes from nothing.

Source: HyperDreamBooth, arXiv:2307.06949, "Rank-Relaxed Fast Finetuning".
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ...errors import Cancelled, ConfigError, OutputError
from ...identity import Identity, truncated
from ...ops.finite import is_finite
from ...ops.lowrank import LoraPair
from ..base import Base, check_answer, frozen
from ..progress import Progress, also_while_waiting, no_progress
from ..undivided import ended_like_stopped, undivided
from .denoising_error import add_gradient, personalized, row_errors
from .layer_units import measure_units
from .lean_base import encoders_away, lean
from .memory import Plan, check_text
from .polish_checkpoint import PolishCheckpoint, PolishRun, job_digest
from .polish_config import PolishConfig, as_in_0_1_0
from .preservation import Preserved, draw_preserved
from .trainable_adapters import TrainableAdapters, without_effect
from .training_pictures import TrainingPictures, encode_pictures

Current = Callable[[], Mapping[str, LoraPair]]
"""The adapter as it is by now, layer by layer; asked for only by whoever draws with it."""
Watcher = Callable[[int, int, Current], None]
"""Called as watcher(step, steps, current) between steps; raising `Cancelled` there stops."""


@dataclass(frozen=True, eq=False)
class PolishResult:
    """One polished subject."""

    identity: Identity
    losses: tuple[float, ...]
    """Of every step taken, averaged over the batch."""
    seconds: float
    """Of the whole call, for all subjects in it."""
    cancelled: bool = False
    """Stopped by the user; the identity is the best so far."""
    steps: int = 0
    """That the whole job has: what it was begun with, where an earlier release began it."""


def polish(
    base: Base,
    references: Tensor,
    start: Identity | None = None,
    config: PolishConfig | None = None,
    progress: Progress = no_progress,
    checkpoint: Path | None = None,
    captions: Sequence[str] = (),
    watch: Watcher | None = None,
    keeps_checkpoint: bool = False,
    plan: Plan | None = None,
) -> PolishResult:
    """Polish a predicted identity, or make one from nothing, on pictures of its subject.

    A host cancels by raising `Cancelled` in `progress`, a user with Ctrl-C: what was best so far is returned, flagged,
    and the checkpoint, if one is named, holds every whole step.
    Equal arguments on one machine give equal results bit for bit; the base is as it was afterwards, whatever happens.

    Args:
        base: to polish on; its weights are not changed.
        references: (n, 3, h, w) in 0..1, at the size to train at.
        start: prediction for this base to start from; its rank and the config's add up.
        config: settings.
        progress: called with (step, steps) between steps.
        watch: likewise, with the adapter as it is by then.
        checkpoint: file to save to every few steps and to resume from; removed when the job is done.
        keeps_checkpoint: leave that to the caller, who first writes the result to where it cannot be lost.
        captions: what each reference shows besides the subject, such as "smiling, at the beach"; what they name is
            not learnt as a part of the subject. `describe` reads them off the pictures.
        plan: of `room.planned`, for the memory there is; its size is the references'. None takes the config's samples
            at once and computes nothing twice.

    Raises:
        BaseMismatchError: the prediction was made for another base family.
        OutputError: the base answers with numbers that are not finite.
        ConfigError: training diverged; captions for another number of pictures; or the checkpoint is of another job.
        Cancelled: stopped before there was anything to train.
    """
    subject = (references, captions)
    config = config or PolishConfig()
    result = _polish_rows(base, [subject], [start], config, progress, checkpoint, watch, plan)[0]
    if checkpoint is not None and not (result.cancelled or keeps_checkpoint):
        checkpoint.unlink(missing_ok=True)
    return result


def polish_batch(
    base: Base,
    references: Sequence[Tensor],
    starts: Sequence[Identity | None],
    config: PolishConfig | None = None,
    progress: Progress = no_progress,
    subjects_at_once: int = 16,
    captions: Sequence[Sequence[str]] | None = None,
) -> list[Identity]:
    """The identities of many subjects, each as `polish` would make it up to rounding, many in one batch.

    Args:
        references: per subject (n, 3, h, w) in 0..1, all of one size.
        starts: prediction of each subject, or None; all for the same layers and bases.
        subjects_at_once: how many share a batch; memory grows with it.
        captions: per subject what each of its pictures shows, or none.

    Raises:
        Cancelled: by `progress`; nothing is kept.
    """
    config = config or PolishConfig()
    total, identities = (
        len(references) * config.steps_from(any(start is not None for start in starts)),
        list[Identity](),
    )
    subjects = list(zip(references, captions or [()] * len(references), strict=True))
    for first in range(0, len(references), subjects_at_once):
        rows = slice(first, first + subjects_at_once)
        count = len(references[rows])

        def within(step: int, steps: int, first: int = first, count: int = count) -> None:
            progress(first * steps + step * count, total)

        results = _polish_rows(base, subjects[rows], starts[rows], config, within, None)
        if results[0].cancelled:
            raise Cancelled(f"stopped after {first} of {len(references)} subjects; nothing was kept")
        identities += [result.identity for result in results]
    return identities


def _polish_rows(
    base: Base,
    subjects: Sequence[tuple[Tensor, Sequence[str]]],
    starts: Sequence[Identity | None],
    config: PolishConfig,
    progress: Progress,
    checkpoint: Path | None,
    watch: Watcher | None = None,
    plan: Plan | None = None,
) -> list[PolishResult]:
    began = time.perf_counter()
    config = _with_steps(config, subjects, starts, checkpoint)
    if len(subjects) != len(starts):
        raise ConfigError(f"{len(subjects)} subjects have pictures but {len(starts)} a start; give one for each")
    like = without_effect(base.family, starts, (config.target_set, config.down_dim, config.up_dim))
    like = replace(like, identifier=config.identifier, class_noun=config.class_noun)
    cancelled = False
    with ExitStack() as stack:
        stack.enter_context(frozen(base))
        stack.enter_context(ended_like_stopped())
        progress = stack.enter_context(also_while_waiting(progress, config.steps))
        names = [f"a {who.identifier} {who.class_noun}" for who in (start or like for start in starts)]
        material = encode_pictures(
            base, subjects, names, config.crops, config.jitter, config.background_weight, config.seed
        )
        check_text(base.family, material.prompts.conditioning)
        saved = PolishCheckpoint(checkpoint, job_digest(config, subjects, starts))
        base, config = _by_plan(base, config, plan)
        adapters = _adapters(base, like, starts, material, config)
        optimizer = torch.optim.AdamW(
            adapters.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
        )
        run = PolishRun(adapters, optimizer, [], [], torch.full((len(starts),), math.inf))
        if watch is not None:
            progress = _watched(progress, watch, adapters)
        try:
            preserved = _preserved(base, adapters, names, starts, material, config, progress)
            with encoders_away(base, with_text=not adapters.touch_text(base.family)):
                _train(base, run, (material, preserved), config, progress, saved)
        except (Cancelled, KeyboardInterrupt):
            cancelled = True
            if run.back_to_whole_steps() and run.losses:
                # What is there is handed on in any case.
                with suppress(OutputError):
                    saved.save(run, len(run.losses))
    results = _results(run, starts, config, cancelled, began)
    if base.device.type == "cuda":
        del run, adapters, optimizer, material
        torch.cuda.empty_cache()
    return results


def _by_plan(base: Base, config: PolishConfig, plan: Plan | None) -> tuple[Base, PolishConfig]:
    """Both as the plan wants them, once the job's digest is known: with other memory the job is the same."""
    if plan is None:
        return base, config
    return lean(base) if plan.recomputes else base, replace(config, samples_at_once=plan.samples_at_once)


def _adapters(
    base: Base, like: Identity, starts: Sequence[Identity | None], material: TrainingPictures, config: PolishConfig
) -> TrainableAdapters:
    """The fresh adapters, in the unit that the config wants."""
    generator = torch.Generator().manual_seed(config.seed)
    adapters = TrainableAdapters(base.family, like, config.rank, starts, generator, base.device)
    if config.rate_unit == "output":
        adapters.count_in(_units(base, adapters, material, config))
    return adapters


def _units(
    base: Base, adapters: TrainableAdapters, material: TrainingPictures, config: PolishConfig
) -> dict[str, Tensor]:
    """Each layer's unit, measured on the held-out crops."""
    like = adapters.like
    return measure_units(
        base, like.layers, adapters.directions(), like.up_dim, material.prompts, material.holdout.samples(base),
        config.samples_at_once,
    )  # fmt: skip


def _preserved(
    base: Base,
    adapters: TrainableAdapters,
    names: Sequence[str],
    starts: Sequence[Identity | None],
    material: TrainingPictures,
    config: PolishConfig,
    progress: Progress,
) -> Preserved | None:
    """What the starts put out while they draw other contexts; None where there is nothing to preserve."""
    has_start = [start is not None for start in starts]
    steps = config.steps_from(any(has_start))
    if not (config.preserve and steps and any(has_start)):
        return None
    return draw_preserved(
        base, adapters, names, has_start, side=material.holdout.latents.shape[-1], seed=config.seed,
        at_once=config.samples_at_once, between=lambda: progress(0, steps),
    )  # fmt: skip


def _with_steps(
    config: PolishConfig,
    subjects: Sequence[tuple[Tensor, Sequence[str]]],
    starts: Sequence[Identity | None],
    checkpoint: Path | None,
) -> PolishConfig:
    """The settings with the steps that they stand for. A job that 0.1.0 stopped goes on as it began."""
    has_start = any(start is not None for start in starts)
    settled = replace(config, steps=config.steps_from(has_start))
    if checkpoint is None or not checkpoint.exists():
        return settled
    # What one of these began is in the file.
    for older in (settled, as_in_0_1_0(config)):
        if PolishCheckpoint(checkpoint, job_digest(older, subjects, starts)).is_begun():
            return older
    return settled


def _train(
    base: Base,
    run: PolishRun,
    given: tuple[TrainingPictures, Preserved | None],
    config: PolishConfig,
    progress: Progress,
    saved: PolishCheckpoint,
) -> None:
    with undivided():
        steps = config.steps_from(given[1] is not None)
        step = saved.load(run, steps)
    while step < steps and run.looks_since < config.patience:
        progress(step, steps)
        losses = _add_gradients(base, run, given, config, step)
        with undivided():
            run.whole = [parameter.detach().clone() for parameter in run.adapters.parameters()]
            for group in run.optimizer.param_groups:
                group["lr"] = config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            run.optimizer.step()
            run.optimizer.zero_grad(set_to_none=True)
            step += 1
            run.losses.append(losses)
            if config.holdout_every and step % config.holdout_every == 0:
                _look(base, run, given[0])
            run.whole = None
            if step % config.save_every == 0 and step < steps:
                saved.save(run, step)
    progress(steps, steps)


def _add_gradients(
    base: Base, run: PolishRun, given: tuple[TrainingPictures, Preserved | None], config: PolishConfig, step: int
) -> Tensor:
    """Leave the gradient of a step in the adapters and return each row's error on its pictures, (rows,).

    Raises:
        OutputError: the base itself answers with numbers that are not finite.
        ConfigError: only with the adapters it does: they have diverged.
    """
    material, preserved = given
    # Gradients of a half-precision UNet underflow unscaled; a power of two changes nothing else.
    scale = 1024.0 if base.dtype == torch.float16 else 1.0
    adapters, at_once = run.adapters, config.samples_at_once
    samples = material.select(step, config.batch, config.noise_power).samples(base)
    losses = add_gradient(base, adapters, material.prompts, samples, scale, at_once)
    if not is_finite(losses):
        check_answer(base, samples.noisy[0, :1], samples.t[:1], material.prompts.conditioning[:1])
        raise diverged(config)
    if preserved is not None:
        samples = preserved.samples(step, config.preserve_batch)
        weight = config.preserve * scale * preserved.has_start
        add_gradient(base, adapters, preserved.prompts, samples, weight, at_once)
    if config.anchor:
        (config.anchor * scale * adapters.squared_norms().sum()).backward()
    if scale != 1.0:
        for parameter in adapters.parameters():
            parameter.grad = None if parameter.grad is None else parameter.grad / scale
    return losses


def _watched(progress: Progress, watch: Watcher, adapters: TrainableAdapters) -> Progress:
    """Progress that also shows the adapters."""

    @torch.no_grad()
    def current() -> dict[str, LoraPair]:
        return adapters.fold()

    seen = -1

    def both(step: int, steps: int) -> None:
        nonlocal seen
        progress(step, steps)
        # Before the first step progress is called often, while what is preserved is drawn.
        if step != seen:
            seen = step
            watch(step, steps, current)

    return both


@torch.no_grad()
def _look(base: Base, run: PolishRun, material: TrainingPictures) -> None:
    """Judge every row on its held-out crop and keep the coefficients of those that have improved."""
    samples = material.holdout.samples(base)
    with personalized(base, run.adapters, material.prompts, samples.each) as conditioning:
        losses = (row_errors(base, conditioning, samples) / samples.each).cpu()
    better = losses < run.best_loss
    if not run.best:
        run.best = [parameter.detach().clone() for parameter in run.adapters.parameters()]
    for best, parameter in zip(run.best, run.adapters.parameters(), strict=True):
        best[:, better] = parameter.detach()[:, better]
    run.best_loss = torch.minimum(run.best_loss, losses)
    run.looks_since = 0 if bool(better.any()) else run.looks_since + 1


def _results(
    run: PolishRun, starts: Sequence[Identity | None], config: PolishConfig, cancelled: bool, began: float
) -> list[PolishResult]:
    losses = torch.stack(run.losses).cpu() if run.losses else torch.zeros(0, len(starts))
    results = []
    for row, start in enumerate(starts):
        facts = {"finetune_steps": str(len(losses)), "finetune_rank": str(config.rank), "seed": str(config.seed)}
        if not run.losses and start is not None:
            identity = start
        else:
            coefficients = run.adapters.coefficients(row, run.best or None)
            like = start or run.adapters.like
            identity = replace(like, rank=config.rank, coefficients=coefficients)
            _check_finite(identity, config)
            identity = start.concatenated(identity) if start is not None else identity
            identity = replace(identity, made_by={**like.made_by, **facts})
        if config.file_rank:
            identity = truncated(identity, config.file_rank)
        seconds = time.perf_counter() - began
        steps = config.steps_from(start is not None)
        results.append(PolishResult(identity, tuple(losses[:, row].tolist()), seconds, cancelled, steps))
    return results


def _check_finite(identity: Identity, config: PolishConfig) -> None:
    if not all(is_finite(one.up, one.down) for one in identity.coefficients.values()):
        raise diverged(config)


def diverged(config: PolishConfig) -> ConfigError:
    """What a run says whose own numbers are no longer finite."""
    return ConfigError(
        f"polishing with learning_rate {config.learning_rate} diverged: its numbers are no longer finite. "
        f"Use a learning_rate of {config.learning_rate / 3:.1g} or less"
    )
