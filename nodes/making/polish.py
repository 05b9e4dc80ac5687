"""Polishing on a ComfyUI model: the core's one job, with memory asked for before it and nothing lost on Stop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ...hyperdream_core.errors import Cancelled
from ...hyperdream_core.faces.prepared_faces import Faces
from ...hyperdream_core.formats.file_names import free_file
from ...hyperdream_core.formats.identity_file import write_identity
from ...hyperdream_core.identity import Identity
from ...hyperdream_core.miniature.companions import companions_of
from ...hyperdream_core.pipelines.make_identity import (
    MadeIdentity,
    MakeIdentityConfig,
    Watch,
    check_job,
    make_identity,
)
from ...hyperdream_core.pipelines.polishing.memory import Memory, Room
from ...hyperdream_core.pipelines.polishing.polish_config import PolishConfig
from ...hyperdream_core.pipelines.polishing.room import planned, room_for
from ...hyperdream_core.pipelines.predictors.predict import PredictConfig
from ...hyperdream_core.pipelines.prompts import captions_of_lines
from ...hyperdream_core.pipelines.results_folder import ResultsFolder
from ..host import folders, models, run, training
from .comfy_base import ComfyBase
from .polish_watch import PolishWatch

_stopped: list[str] = []
"""steps of each run that went on with less than the whole, since ComfyUI was started"""


@dataclass(frozen=True, kw_only=True)
class PolishOptions:
    """What a host adds to the core's settings."""

    size: int = 0
    """side of the pictures trained on, px; 0 takes the family's own"""
    memory: Memory = "automatic"
    """`fast`, `save memory`, or the one that fits"""
    preview_every: int = 10
    """steps between preview pictures; 0 shows none"""
    goes_on: bool = False
    """after Stop, hand on what there is instead of ending the prompt"""


def polish(
    loaded: tuple[Any, Any, Any],
    faces: Faces,
    start: Identity | None,
    caption: str,
    polishing: PolishConfig,
    options: PolishOptions,
) -> tuple[Identity, Tensor]:
    """Train an identity on the loaded model, which is bit for bit as before afterwards.

    Args:
        loaded: MODEL, CLIP and VAE.
        faces: of the subject.
        start: prediction to start from; None starts from scratch.
        caption: what the pictures show besides the subject, one line for all or one for each; if it is empty, it is
            read off them where the base's words are on record, and other checkpoints go without.
        polishing: settings of the training.
        options: of the host.

    Returns:
        The identity and its curves as a picture (1, h, w, 3).
    """
    family = models.family_of(loaded[0])
    config = MakeIdentityConfig(
        predict=PredictConfig(identifier=polishing.identifier, class_noun=polishing.class_noun),
        polish=polishing,
        captions=captions_of_lines(caption, len(faces.used)) or None,
        size=options.size,
    )
    check_job(family.name, config, None, start, keep_in=folders.output_folder("hyperdream"))
    plan = planned(
        family, polishing, options.size or family.picture_size, start is not None, _room(loaded[0]), options.memory
    )
    if plan.note:
        run.say(f"HyperDream: {plan.note}")
    base = ComfyBase(*loaded, bytes_needed=plan.bytes_needed)
    watch = PolishWatch(base, loaded[2], faces, plan.size, start or polishing, options.preview_every)
    try:
        made = make_identity(
            base,
            faces,
            config,
            companions=companions_of(family.name),
            watch=Watch(stage=_bar(watch), polishing=watch.see),
            start=start,
            plan=plan,
        )
    except Cancelled:
        run.say("HyperDream: polishing was stopped before its first step, so there is nothing to keep")
        run.stop_prompt()
    finally:
        run.tidy_up()
    if made.cancelled:
        _keep(made)
        if not options.goes_on:
            run.stop_prompt()
        # ComfyUI keeps what a node has put out; the next prompt must not take this for the whole.
        _stopped.append(made.identity.made_by.get("finetune_steps", ""))
    return made.identity, watch.curves(made.losses)


def stopped_runs() -> int:
    """How many runs have gone on with less than the whole since ComfyUI was started."""
    return len(_stopped)


def _room(model: Any) -> Room:
    """By ComfyUI's own account; what is idle it takes from the device itself when it is asked for room."""
    unet, device = models.unet_of(model), model.load_device
    room = room_for(unet, device, models.inference_dtype(model), 0.0)
    return replace(room, free=training.room_beside(model))


def _bar(watch: PolishWatch) -> Any:
    @contextmanager
    def stage(label: str) -> Iterator[Any]:
        yield watch.progress

    return stage


def _keep(made: MadeIdentity) -> Path | None:
    """Save what a stopped run has reached, if it has reached anything."""
    if not made.losses:
        run.say("HyperDream: polishing was stopped before its first step; the identity is what it started from")
        return None
    path = free_file(folders.output_folder("hyperdream"), f"stopped-{time.strftime('%Y%m%d-%H%M%S')}")
    identity = replace(made.identity, made_by={**made.identity.made_by, "stopped": "by the user"})
    results = ResultsFolder(path.parent)
    results.keep(path.name, lambda path: write_identity(path, identity))
    results.close()
    run.say(f"HyperDream: polishing was stopped after {len(made.losses)} steps; the best so far is kept in {path}")
    return path
