"""The one job: prepared faces of a subject in, its identity out; command line, ComfyUI and the tab call this.

Predict where there is a predictor, read a caption where the base's words are on record, polish, and keep the best so
far if the user stops. Sizes are agreed here: a predictor sees the faces at the size it wants, polishing at the size
that is drawn at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from ..bases import get_base
from ..errors import BaseMismatchError, Cancelled, ConfigError
from ..faces.prepared_faces import Faces
from ..identity import Identity
from .base import Base
from .before_work import bytes_of_identity, check_folder, check_prompts, check_texts
from .companions import Companions
from .polishing.memory import Memory, Plan
from .polishing.polish import Watcher, polish
from .polishing.polish_config import STEPS_FROM_SCRATCH, PolishConfig
from .polishing.room import planned, room_of
from .predictors.predict import PredictConfig
from .predictors.predictor import Predictor
from .progress import Progress, no_progress


@contextmanager
def _unwatched(label: str) -> Iterator[Progress]:
    yield no_progress


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who looks on."""

    stage: Callable[[str], AbstractContextManager[Progress]] = _unwatched
    """opens the progress of a stage by its label"""
    polishing: Watcher | None = None
    """sees every step of polishing, and what there is by then"""
    say: Callable[[str], None] | None = None
    """hears what is done otherwise than was asked for, as soon as it is known; it is among the notes as well"""


@dataclass(frozen=True, kw_only=True)
class MakeIdentityConfig:
    """Settings of making an identity."""

    predict: PredictConfig = field(default_factory=PredictConfig)
    """Settings of the prediction."""
    polish: PolishConfig = field(default_factory=PolishConfig)
    """Settings of the polishing."""
    captions: tuple[str, ...] | None = None
    """What each picture shows besides the subject, empty for nothing; None reads it off where the base's words are on
    record, and says nothing elsewhere."""
    size: int = 0
    """Side of the pictures that are polished on, px; 0 takes the base's own."""
    neutral: bool = False
    """Also predict from a plain grey picture, which guidance 'reference-null' leads away from."""
    memory: Memory = "automatic"
    """Whether polishing may compute blocks of the UNet twice: `fast` never, `save memory` always, `automatic` where
    there is no room otherwise."""


@dataclass(frozen=True, eq=False, kw_only=True)
class MadeIdentity:
    """What the job has made."""

    identity: Identity
    predicted: Identity | None = None
    """before polishing"""
    neutral: Identity | None = None
    losses: tuple[float, ...] = ()
    """of every step of polishing, averaged over the batch"""
    captions: tuple[str, ...] = ()
    """that it was polished under"""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """of each stage"""
    cancelled: bool = False
    """stopped by the user; the identity is the best so far"""
    notes: tuple[str, ...] = ()
    """what is to be said of it"""

    @property
    def how(self) -> str:
        """How it was made, in words."""
        if not self.losses:
            return "predicted"
        start = "predicted and polished" if self.predicted is not None else "polished from scratch"
        return f"{start} for {len(self.losses)} steps"


def make_identity(
    base: Base,
    faces: Faces,
    config: MakeIdentityConfig | None = None,
    predictor: Predictor | None = None,
    companions: Companions | None = None,
    watch: Watch | None = None,
    start: Identity | None = None,
    plan: Plan | None = None,
) -> MadeIdentity:
    """The identity of the faces' subject; the base is as it was afterwards, whatever happens.

    Args:
        base: to make it for.
        faces: of the subject.
        config: settings.
        predictor: for the base's family; None polishes from scratch.
        companions: of the base's family.
        watch: who looks on.
        start: what has been predicted already; takes the predictor's place.
        plan: for the memory there is, where a host has asked for it already.

    Raises:
        BaseMismatchError: the predictor or the start is for another family.
        ConfigError: nothing to do, settings that contradict each other, or too little memory.
        Cancelled: stopped before there was anything to keep.
    """
    config, watch = config or MakeIdentityConfig(), watch or Watch()
    check_job(base.family.name, config, predictor, start)
    plan = plan or plan_for(base, config, predictor is not None or start is not None)
    if plan.note and watch.say is not None:
        watch.say(plan.note)
    seconds: dict[str, float] = {}
    predicted, neutral = start, None
    if predictor is not None:
        with _timed(seconds, "predict"):
            predicted = predictor.predict(faces, config.predict, config.polish.seed)[0]
            neutral = predictor.neutral(config.predict) if config.neutral else None
    made = partial(MadeIdentity, predicted=predicted, neutral=neutral, seconds=seconds)
    polishing = _with_steps(config, predicted)
    if polishing.steps == 0:
        assert predicted is not None, "check_job refuses a job without prediction and steps"
        return made(identity=predicted)
    try:
        with _timed(seconds, "polish"), watch.stage("polish") as progress, _out_of_memory(plan):
            captions = _captions(base, faces, config, companions)
            who = predicted or config.predict
            prompts = [f"a {who.identifier} {who.class_noun}, {caption}" for caption in captions]
            notes = (*([plan.note] if plan.note else []), *check_prompts(base, prompts, who.identifier))
            references = faces.at(plan.size)
            result = polish(
                base, references, predicted, polishing, progress, captions=captions, watch=watch.polishing, plan=plan
            )
    except (Cancelled, KeyboardInterrupt):
        if predicted is None:
            raise
        # Stopped between the prediction and the first step.
        return made(identity=predicted, cancelled=True)
    if result.cancelled and not result.losses:
        if predicted is None:
            raise Cancelled("stopped before the first step, so there is nothing to keep yet")
        return made(identity=predicted, cancelled=True)
    return made(
        identity=result.identity, losses=result.losses, captions=captions, cancelled=result.cancelled, notes=notes
    )


def plan_for(base: Base, config: MakeIdentityConfig, has_start: bool) -> Plan:
    """The way to polish for which there is room beside a loaded base; hosts ask it before they search or train.

    Raises:
        ConfigError: there is none; names what would fit.
    """
    size = config.size or base.family.picture_size
    return planned(base.family, config.polish, size, has_start, room_of(base), config.memory)


def check_job(
    family: str,
    config: MakeIdentityConfig,
    predictor: Predictor | None,
    start: Identity | None = None,
    keep_in: Path | None = None,
) -> None:
    """Refuse what would fail later on; costs nothing. Every host calls this before it searches, loads or trains.

    Args:
        keep_in: folder that the identity will be written to, which need not be there yet.

    Raises:
        BaseMismatchError, ConfigError: as `make_identity`.
        OutputError: the folder cannot be written, or the disk is too full.
    """
    check_texts(caption=config.captions or ())
    if keep_in is not None:
        rank = config.polish.rank + (start.rank if start is not None else 0)
        check_folder(keep_in, bytes_of_identity(get_base(family), config.polish.target_set, rank))
    if predictor is not None and predictor.family != family:
        raise BaseMismatchError(
            f"the predictor was trained for {predictor.family!r}, but the base is {family!r}; name a predictor for it, "
            "or none at all to polish from scratch"
        )
    if start is not None and start.family != family:
        raise BaseMismatchError(
            f"the identity was made for {start.family!r}, but the base is {family!r}; start from scratch, or load a "
            f"checkpoint of {start.family!r}"
        )
    if predictor is None and config.neutral:
        raise ConfigError(
            "guidance 'reference-null' leads away from what a predictor says of a grey picture, and there is no "
            "predictor; use another guidance, or name one"
        )
    if predictor is None and start is None and config.polish.steps == 0:
        raise ConfigError(
            f"there is no predictor for {get_base(family).title} and the polishing steps are 0, so there is nothing to "
            f"make an identity with; set steps to {STEPS_FROM_SCRATCH} or so, or name a predictor"
        )
    if config.size % 8 or (config.size and not 32 <= config.size <= 4096):
        raise ConfigError(
            f"size must be a multiple of 8 from 32 to 4096 px, or 0 for the base's own, got {config.size}"
        )


def _with_steps(config: MakeIdentityConfig, predicted: Identity | None) -> PolishConfig:
    words = config.predict
    return replace(
        config.polish,
        steps=config.polish.steps_from(predicted is not None),
        identifier=words.identifier,
        class_noun=words.class_noun,
    )


def _captions(base: Base, faces: Faces, config: MakeIdentityConfig, companions: Companions | None) -> tuple[str, ...]:
    if config.captions is not None:
        return config.captions
    if companions is None:
        return ()
    return tuple(companions.read_captions(base, faces.at(base.family.picture_size)))


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = round(time.perf_counter() - began, 3)


@contextmanager
def _out_of_memory(plan: Plan) -> Iterator[None]:
    """Training outside of a host's inference mode, with one sentence where the device is too small for it."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    except torch.cuda.OutOfMemoryError as error:
        count = plan.samples_at_once
        raise ConfigError(
            f"the graphics card ran out of memory while polishing at {plan.size} px with {count} sample"
            f"{'s' if count > 1 else ''} at once; take fewer of them, a smaller size, or let memory be 'save memory'"
        ) from error
