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

from ...bases import TARGET_SETS
from ...config import check_at_most
from ...errors import Cancelled, ConfigError, OutputError
from ...identity import Identity, truncated
from ...ops.finite import is_finite
from ...ops.lowrank import LoraPair
from ..base import Base, check_answer, frozen
from ..before_work import check_words
from ..progress import Progress, also_while_waiting, no_progress
from ..undivided import ended_like_stopped, undivided
from .denoising_error import add_gradient, personalized, row_errors
from .memory import check_text
from .polish_checkpoint import PolishCheckpoint, PolishRun, job_digest
from .preservation import Preserved, draw_preserved
from .trainable_adapters import TrainableAdapters, without_effect
from .training_pictures import TrainingPictures, encode_pictures

STEPS_AFTER_PREDICTION, STEPS_FROM_SCRATCH = 40, 200
"""Where nobody says otherwise: HyperDreamBooth's 40, and what plain LoRAs of a person are trained for at the least."""

Current = Callable[[], Mapping[str, LoraPair]]
"""The adapter as it is by now, layer by layer; asked for only by whoever draws with it."""
Watcher = Callable[[int, int, Current], None]
"""Called as watcher(step, steps, current) between steps; raising `Cancelled` there stops."""


@dataclass(frozen=True, kw_only=True)
class PolishConfig:
    """Settings of one polishing run."""

    steps: int | None = None
    """Optimiser steps; 0 keeps the prediction as it is. Left out: 40 after a prediction, 200 from scratch. On the
    miniature 20 gain as much as 40."""
    rank: int = 4
    """Rank of the fresh adapter that is trained on top of the prediction."""
    learning_rate: float = 1.2e-2
    """AdamW's rate at the first step; it falls to 0 along half a cosine. Up to 2e-2 polishing ends nearly the
    same, but what is made from nothing forgets more of the prompt."""
    batch: int = 8
    """Noise draws of the subject's pictures in a step."""
    noise_power: float = 1.3
    """Noise levels are drawn with density power * t ** (power - 1): 1 is uniform, more favours high noise, where
    identity is decided."""
    crops: int = 0
    """Slightly shifted and zoomed copies of each picture that are trained on besides it, against learning its framing
    in long trainings. In a short one they blur: with 3 of them eyes and mouth fade."""
    jitter: float = 0.04
    """Largest shift and zoom of these copies, as a share of the picture's side."""
    background_weight: float = 0.1
    """Weight, in the loss, of what is around the head, which a prepared crop has in its middle; below 1 less of the
    place is learnt, and 1 is right where the head is elsewhere. At a learning rate of 2e-2, 32 of the miniature's
    people reach similarity 0.775 at attributes 0.982 with 0.1 in 20 steps, and 0.764 at 0.978 with 1."""
    preserve: float = 0.5
    """Weight, in the loss, of drawing other contexts as the start draws them; 0 lets the picture's own context creep
    into all of them. Without a start there is nothing to preserve. On 32 of the miniature's people 40 steps reach
    similarity 0.778 at attributes 0.975 with 0.5, and 0.780 at 0.953 with 0.25."""
    preserve_batch: int = 8
    """Samples of that in a step."""
    samples_at_once: int = 4
    """Samples that share a forward pass; fewer take less memory and give the same result up to rounding."""
    anchor: float = 0.0
    """Weight of the squared distance (Frobenius) from the prediction in the loss."""
    file_rank: int = 4
    """Largest rank of the result, reached by leaving out each layer's smallest singular values; 0 keeps all. At 4 a
    polished identity of the miniature takes 93 KB."""
    holdout_every: int = 0
    """Steps between looks at a held-out crop, of which the best result is kept; 0 keeps the last step's."""
    patience: int = 3
    """Looks without improvement after which training stops early."""
    save_every: int = 10
    """Steps between checkpoints, if a checkpoint file is named."""
    target_set: str = "attention"
    """Layers to adapt when there is no prediction to start from; a prediction brings its own."""
    down_dim: int = 50
    """Basis size on the input side, likewise."""
    up_dim: int = 100
    """Basis size on the output side, likewise."""
    identifier: str = "sks"
    """The rare word that will stand for the subject, likewise."""
    class_noun: str = "face"
    """What kind of thing the subject is, likewise."""
    seed: int = 0
    """Seed of the fresh adapter, crops, noise and noise levels."""

    def __post_init__(self) -> None:
        for name in ("rank", "batch", "patience", "save_every", "down_dim", "up_dim", "preserve_batch",
                     "samples_at_once"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("crops", "background_weight", "preserve", "anchor", "file_rank", "holdout_every", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.steps is not None and self.steps < 0:
            raise ConfigError(f"steps must be 0 or more, got {self.steps}")
        if not 0 < self.learning_rate < 1:
            raise ConfigError(f"learning_rate must lie between 0 and 1, got {self.learning_rate}")
        if not self.noise_power > 0:
            raise ConfigError(f"noise_power must be above 0, got {self.noise_power}; 1 is uniform")
        if not 0 <= self.jitter <= 0.25:
            raise ConfigError(f"jitter must lie in 0..0.25, got {self.jitter}")
        check_words(self.identifier, self.class_noun)
        check_at_most(
            self, steps=1_000_000, rank=1024, batch=1024, preserve_batch=1024, samples_at_once=1024, crops=1000,
            file_rank=1024, down_dim=4096, up_dim=4096, preserve=1000, anchor=1e6, noise_power=100,
            background_weight=1000, seed=2**63 - 1,
        )  # fmt: skip
        if self.target_set not in TARGET_SETS:
            raise ConfigError(f"unknown target set {self.target_set!r}; known: {', '.join(TARGET_SETS)}")

    def steps_from(self, has_start: bool) -> int:
        """How many steps it stands for, by whether there is a prediction to start from."""
        if self.steps is not None:
            return self.steps
        return STEPS_AFTER_PREDICTION if has_start else STEPS_FROM_SCRATCH


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

    Raises:
        BaseMismatchError: the prediction was made for another base family.
        OutputError: the base answers with numbers that are not finite.
        ConfigError: training diverged; captions for another number of pictures; or the checkpoint is of another job.
        Cancelled: stopped before there was anything to train.
    """
    subject = (references, captions)
    config = config or PolishConfig()
    result = _polish_rows(base, [subject], [start], config, progress, checkpoint, watch)[0]
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
        generator = torch.Generator().manual_seed(config.seed)
        adapters = TrainableAdapters(base.family, like, config.rank, starts, generator, base.device)
        optimizer = torch.optim.AdamW(
            adapters.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
        )
        run = PolishRun(adapters, optimizer, [], [], torch.full((len(starts),), math.inf))
        if watch is not None:
            progress = _watched(progress, watch, adapters)
        saved = PolishCheckpoint(checkpoint, job_digest(config, subjects, starts))
        try:
            preserved = _preserved(base, adapters, names, starts, material, config, progress)
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
    """The settings with the steps that they stand for.

    0.1.0 took as many from scratch as after a prediction if none were named. A job that it stopped goes on as it began.
    """
    has_start = any(start is not None for start in starts)
    if config.steps is None and not has_start:
        older = replace(config, steps=STEPS_AFTER_PREDICTION)
        if PolishCheckpoint(checkpoint, job_digest(older, subjects, starts)).is_begun():
            return older
    return replace(config, steps=config.steps_from(has_start))


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
