"""A predictor for a checkpoint: a corpus of subjects and a frozen base in, one predictor file out.

What is written meanwhile lies in a folder of its own: the checkpoint that the same job goes on from, a table of what
was measured, its curves, and grids of held-out people.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...config import check_at_most, config_to_json
from ...errors import BaseMismatchError, ConfigError
from ...models.hypernetwork import Hypernetwork, HypernetworkConfig
from ...pictures.files import save_image
from ..base import frozen
from ..before_work import check_words
from ..corpora.corpus import Corpus
from ..diffusers.diffusers_base import DiffusersBase
from ..predictors.frozen_encoder import FrozenEncoder
from ..predictors.hypernetwork_predictor import save_hypernetwork
from ..predictors.predict import PredictConfig
from .launch import is_main_process
from .loop import Moment, train
from .probes import Probes, grid_picture
from .schedule import TrainingConfig, deciding
from .subject_rows import SubjectBatches, check_identities
from .train_hypernetwork import HypernetworkObjective
from .training_log import TrainingLog, check_trackers, new_trackers

Progress = Callable[[int, int], None]
CHECKPOINT = "checkpoint.safetensors"
_SEEN = ("look_every", "grid_every", "probed", "trackers")
"""Settings of what is looked at, which decide nothing."""


@dataclass(frozen=True, kw_only=True)
class PredictorTraining(TrainingConfig):
    """Settings of a predictor's training."""

    steps: int = 20_000
    """Optimiser steps."""
    learning_rate: float = 5e-4
    """Peak learning rate; warmed up linearly, then decayed along a cosine."""
    batch: int = 16
    """Subjects of one step, over all processes."""
    pictures: int = 2
    """Pictures of each subject in a step."""
    penalty: float = 3e-3
    """Weight of the mean square of the prediction: what keeps it from growing without bound."""
    supervision: float = 0.0
    """Weight of the distance to the corpus' pre-optimised identities; 0.02 to 0.1 where it has some."""
    supervision_from: float = 0.5
    """Share of the steps from which on that weight falls, to 0 at the end; 1 keeps it."""
    noise_power: float = 1.5
    """Above 1 leans towards noise, where identity is decided."""
    unconditional: float = 0.125
    """Share of pictures of anybody under an empty prompt, so that guidance strengthens the identity."""
    caption_dropout: float = 0.1
    """Share of prompts that only name the subject."""
    identifier: str = "sks"
    """The rare word that stands for the subject in prompts."""
    look_every: int = 500
    """Steps between looks at held-out people at fixed noise; 0 never looks."""
    grid_every: int = 2000
    """Steps between grids of held-out people, drawn with what is predicted for them; 0 draws none."""
    probed: int = 32
    """Held-out people that are looked at, at the most."""
    trackers: tuple[str, ...] = ()
    """Trackers of Accelerate besides log.csv, by name, such as tensorboard or wandb."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch", "pictures", "probed"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("penalty", "supervision", "look_every", "grid_every"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("supervision_from", "unconditional", "caption_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in 0..1, got {getattr(self, name)}")
        check_words(self.identifier, "face")
        check_at_most(self, pictures=1024, probed=100_000, penalty=1e6, supervision=1e6, noise_power=1e3)


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictorJob:
    """What is trained, on what."""

    base: DiffusersBase
    """frozen; in the numbers that it computes with"""
    base_name: str
    """as a person finds it again"""
    corpus: Corpus
    network: HypernetworkConfig
    config: PredictorTraining
    work: Path
    """folder of the checkpoint, and of what is measured"""
    encoder: FrozenEncoder | None = None
    """of references; None trains a small one along"""

    @property
    def checkpoint(self) -> Path:
        """What the same job goes on from."""
        return self.work / CHECKPOINT

    @property
    def has_features(self) -> bool:
        """Whether the corpus holds what this image encoder sees in its references."""
        facts = self.corpus.parts["features"].facts if self.corpus.is_whole("features") else {}
        return self.encoder is not None and facts.get("encoder") == self.encoder.digest

    def check(self) -> None:
        """Refuse what would fail later on.

        Raises:
            ConfigError: the corpus lacks what this training needs, or has nobody to learn from; unknown trackers.
            BaseMismatchError: the corpus' latents are another base's, or the network is for another family.
            MissingDependencyError: a tracker's package is not installed.
        """
        check_trackers(self.config.trackers)
        family, parts = self.base.family.name, ["latents"]
        if self.network.family != family:
            raise BaseMismatchError(f"the predictor is to be for {self.network.family!r}, but the base is {family!r}")
        if self.config.supervision:
            parts.append("identities")
        self.corpus.check(*parts, family=family, fingerprint=self.base.fingerprint())
        if not len(self.corpus.training):
            raise ConfigError(
                f"{self.corpus.folder}: all of its {len(self.corpus)} subjects are held out, so there is nobody to "
                "learn from; collect more, or with a lower --held-out"
            )

    def new_network(self) -> Hypernetwork:
        """The network before its first step; equal jobs give equal ones."""
        config = self.network
        if self.encoder is not None:
            config = replace(config, image_encoder=self.encoder.config, freeze_image_encoder=True)
        else:
            config = replace(config, freeze_image_encoder=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed % 2**32)
            network = Hypernetwork(config)
        if self.encoder is not None:
            network.encoder.load_state_dict(self.encoder.network.state_dict())
        return network

    def batches(self) -> SubjectBatches:
        """What a step draws."""
        config, family = self.config, self.base.family
        side = family.picture_size // family.vae_factor
        return SubjectBatches(
            corpus=self.corpus,
            rows=config.batch,
            pictures=config.pictures,
            names=f"a {config.identifier} {self.corpus.manifest.class_noun}",
            picture_size=family.picture_size,
            latent_shape=(family.latent_channels, side, side),
            passes=self.network.refine_steps,
            device=self.base.device,
            noise_power=config.noise_power,
            unconditional=config.unconditional,
            caption_dropout=config.caption_dropout,
            has_features=self.has_features,
            has_identities=config.supervision > 0,
        )

    def made_by(self) -> dict[str, Any]:
        """All that decides the result besides the training's settings, as JSON values."""
        return {
            "base": self.base.fingerprint(),
            "corpus": self.corpus.manifest.plan,
            "network": {name: v for name, v in config_to_json(self.network).items() if name != "image_encoder"},
            "encoder": self.encoder.digest if self.encoder is not None else "trained along",
            "subjects": len(self.corpus.training),
        }


def train_predictor(
    job: PredictorJob,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
    also: Callable[[Moment], None] = lambda moment: None,
) -> tuple[Hypernetwork, dict[str, Any]]:
    """Train, or go on with a training; in every process of several.

    Args:
        job: what is trained; checked first.
        progress: called with (step, steps), in the main process; raising there stops all after a save.
        say: told the figures of each look, in the main process.
        also: called after every step, in every process, once all else is done.

    Returns:
        The network with its averaged weights, and the facts of its model card.

    Raises:
        ConfigError, BaseMismatchError, MissingDependencyError: as `PredictorJob.check`, and as `loop.train`.
        FileFormatError: the checkpoint is damaged, or of another training.
        OutputError: the folder cannot be written, or the disk is full; the last checkpoint is whole.
    """
    job.check()
    network, batches = job.new_network(), job.batches()
    network.to(job.base.device)
    if job.config.supervision:
        check_identities(job.corpus, network.start())
    c = job.config
    objective = HypernetworkObjective(
        network, job.base, penalty=c.penalty, supervision=c.supervision, supervision_from=c.supervision_from,
        recompute=c.recompute,
    )  # fmt: skip
    looks = _Looks(job, network, batches, say)
    training = {**job.made_by(), "settings": _settings(c)}

    def watch(moment: Moment) -> None:
        looks(moment)
        also(moment)

    with ExitStack() as stack:
        stack.enter_context(frozen(job.base))
        stack.callback(looks.log.finish)
        losses = train(
            objective, batches, _of_loop(c), job.checkpoint, progress, job.base.device, made_by=training,
            on_step=objective.at, watch=watch,
        )  # fmt: skip
        last = losses[-100:]
        facts = card_facts(job, sum(last) / len(last) if last else 0.0, looks.last_figures())
    return network.train(False), facts


def card_facts(job: PredictorJob, loss: float, figures: dict[str, float]) -> dict[str, Any]:
    """What the predictor's file says of its training, as JSON values: sources, licence, settings and figures."""
    manifest = job.corpus.manifest
    return {
        "base": job.base_name,
        "steps": job.config.steps,
        "seed": job.config.seed,
        "people": len(job.corpus.training),
        "held_out_people": len(job.corpus.held_out),
        "loss": round(loss, 5),
        "probes": {name: round(value, 5) for name, value in figures.items()},
        "image_encoder": job.encoder.name if job.encoder is not None else "a small one, trained along",
        "licence": manifest.licence,
        "sources": [dict(one) for one in manifest.sources],
        "identifier": job.config.identifier,
        "class_noun": manifest.class_noun,
        "settings": {**deciding(_of_loop(job.config)), **_settings(job.config)},
    }


def save_predictor(path: Path, job: PredictorJob, network: Hypernetwork, facts: dict[str, Any]) -> None:
    """Write the predictor's file, in half precision, image encoder included.

    Raises:
        OutputError: the file cannot be written, or the disk is full.
    """
    save_hypernetwork(
        path, network, base_fingerprint=job.base.fingerprint(), training=facts, dtype=torch.float16
    )  # fmt: skip


def _of_loop(config: PredictorTraining) -> TrainingConfig:
    """The loop's own settings of a predictor's training."""
    names = TrainingConfig.__dataclass_fields__
    return TrainingConfig(**{name: getattr(config, name) for name in names})


def _settings(config: PredictorTraining) -> dict[str, Any]:
    """The settings that decide the result besides the loop's."""
    known = {*TrainingConfig.__dataclass_fields__, *_SEEN}
    return {name: value for name, value in config_to_json(config).items() if name not in known}


class _Looks:
    """Looks at a training from time to time: the loop's `watch`. It writes in the main process only."""

    def __init__(
        self, job: PredictorJob, network: Hypernetwork, batches: SubjectBatches, say: Callable[[str], None]
    ) -> None:
        self.job, self.say, self.figures = job, say, dict[str, float]()
        people: Tensor = job.corpus.held_out[: job.config.probed]
        at_once = job.config.micro_batch or 4
        self.probes = Probes(job.corpus, job.base, network, batches, people, at_once) if len(people) else None
        self.log = TrainingLog(job.work, every=max(1, job.config.steps // 1000))
        self.is_open, self.began = False, time.perf_counter()

    def __call__(self, moment: Moment) -> None:
        if not moment.is_main:
            return
        if not self.is_open:
            self._open(moment)
        config, is_last = self.job.config, moment.step == moment.steps
        is_time = bool(config.look_every) and (moment.step % config.look_every == 0 or is_last)
        figures: dict[str, float] = {}
        if is_time and self.probes is not None:
            with moment.averaged():
                figures = self.figures = self.probes.losses()
        seconds = time.perf_counter() - self.began
        self.log.add(moment.step, moment.loss, moment.learning_rate, seconds, figures)
        if is_time or is_last or moment.step % config.save_every == 0:
            self.log.write()
        if is_time:
            said = {"loss": self.log.last_loss, **figures}
            self.say(f"step {moment.step:,}: " + ", ".join(f"{name} {value:.4f}" for name, value in said.items()))
        if self.probes is not None and config.grid_every and (moment.step % config.grid_every == 0 or is_last):
            with moment.averaged():
                self._draw_grid(moment.step)

    def last_figures(self) -> dict[str, float]:
        """Of the finished network; where an earlier run has looked, what it wrote down."""
        if self.figures or self.probes is None or not self.job.config.look_every or not is_main_process():
            return self.figures
        self.log.go_on(self.job.config.steps)
        last = self.log.rows[-1] if self.log.rows else {"step": 0.0}
        found = {name: value for name, value in last.items() if " at " in name}
        # Killed after the last step was saved, and before the look.
        return found if found and last["step"] == self.job.config.steps else self.probes.losses()

    def _open(self, moment: Moment) -> None:
        self.is_open = True
        self.log.go_on(moment.step - 1)
        if self.log.rows:
            self.began -= self.log.rows[-1]["seconds"]
        facts = {**self.job.made_by(), **config_to_json(self.job.config)}
        self.log.trackers = new_trackers(self.job.config.trackers, "predictor", self.job.work, facts)
        if self.probes is None:
            self.say(f"note: {self.job.corpus.folder} holds nobody out, so that only the training loss can be shown")

    def _draw_grid(self, step: int) -> None:
        assert self.probes is not None
        noun = self.job.corpus.manifest.class_noun
        words = PredictConfig(identifier=self.job.config.identifier, class_noun=noun)
        names = self.probes.batches.names
        prompts = [names, f"{names}, smiling"]
        picture = grid_picture(self.probes.grid(prompts, words), prompts, step)
        save_image(self.job.work / f"grid-{step:07d}.png", picture)
