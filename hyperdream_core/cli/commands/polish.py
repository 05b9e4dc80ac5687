"""`hyperdream polish`: an identity sharpened on its pictures, or made of them from scratch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base_flags import (
    BaseChoice,
    add_base_flags,
    add_caption_flag,
    add_memory_flag,
    add_out_flag,
    captions_of,
    memory_of,
)
from ..console import Console, Outcome, identity_outcome
from ..flags import add_config_flags, config_from_flags, place, whole_number
from ..reference_flags import References, add_reference_flags

if TYPE_CHECKING:
    from ...faces.prepared_faces import Faces
    from ...pipelines.polishing.memory import Memory
    from ...pipelines.polishing.polish import PolishResult
    from ...pipelines.polishing.polish_config import PolishConfig


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `polish`."""
    from ...pipelines.polishing.polish_config import PolishConfig

    add_reference_flags(parser)
    add_caption_flag(parser)
    parser.add_argument("--start", type=place, metavar="IDENTITY", help="prediction to polish (default: from scratch)")
    parser.add_argument(
        "--size",
        type=whole_number,
        default=0,
        metavar="N",
        help="side of the pictures, px (default: 0, the base's own)",
    )
    parser.add_argument("--checkpoint", type=place, metavar="FILE", help="save to this file, and go on from it")
    add_base_flags(parser)
    add_memory_flag(parser)
    add_out_flag(parser, "polished.safetensors")
    add_config_flags(parser, PolishConfig)


@dataclass(frozen=True, kw_only=True)
class _Job:
    references: References
    captions: list[str]
    base: BaseChoice
    config: PolishConfig
    start: Path | None
    size: int
    checkpoint: Path | None
    out: Path
    memory: Memory


def run(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Pictures and perhaps a prediction to a polished identity file; Ctrl-C keeps the best so far."""
    from ...pipelines.polishing.polish_config import PolishConfig

    job = _Job(
        references=References.of(arguments),
        captions=arguments.caption,
        base=BaseChoice.of(arguments),
        config=config_from_flags(PolishConfig, arguments),
        start=arguments.start,
        size=arguments.size,
        checkpoint=arguments.checkpoint,
        out=arguments.out,
        memory=memory_of(arguments),
    )
    return _polish(job, console)


def _polish(job: _Job, console: Console) -> Outcome:
    from ...errors import Cancelled
    from ...formats.identity_file import read_identity, write_identity
    from ...miniature.companions import companions_of
    from ...pipelines.before_work import bytes_of_identity, check_outputs, check_prompts, check_texts
    from ...pipelines.polishing.polish import polish
    from ...pipelines.polishing.polish_checkpoint import PolishCheckpoint
    from ...pipelines.polishing.room import planned, room_of

    check_texts(caption=job.captions)
    results = console.open_results(job.out.parent, [job.out.name])
    if job.checkpoint is not None:
        check_outputs([job.out, job.checkpoint], console.inputs)
        PolishCheckpoint.check_file(job.checkpoint)
    pictures = job.references.read()
    start = read_identity(job.start) if job.start else None
    family = job.base.family
    rank = job.config.rank + (start.rank if start else 0)
    size = bytes_of_identity(family, job.config.target_set, rank)
    results.check(room=5 * size if job.checkpoint else size)
    job.base.check_memory(job.config, job.size, job.memory)
    noun = start.class_noun if start else job.config.class_noun
    faces = job.references.prepare(console, pictures, family.name, noun)
    base = job.base.load(console)
    side = job.size or family.picture_size
    plan = planned(family, job.config, side, start is not None, room_of(base), job.memory)
    console.note([plan.note] if plan.note else [])
    with console.progress("polishing") as progress:
        captions = captions_of(job.captions, base, faces)
        if captions is None:
            captions = tuple(companions_of(family.name).read_captions(base, faces.at(family.picture_size)))
        names = f"a {(start or job.config).identifier} {noun}"
        console.note(check_prompts(base, [f"{names}, {caption}" for caption in captions]))
        result = polish(
            base, faces.at(plan.size), start, job.config, progress, job.checkpoint, captions, keeps_checkpoint=True,
            plan=plan,
        )  # fmt: skip
    if result.cancelled and not result.losses:
        raise Cancelled(f"stopped before the first step; {_as_it_was(job)}")
    path = results.keep(job.out.name, lambda path: write_identity(path, result.identity))
    results.close()
    if job.checkpoint is not None and not result.cancelled:
        job.checkpoint.unlink(missing_ok=True)
    facts = {**_facts(result, captions, faces), "assumptions": list(base.assumptions)}
    if result.cancelled:
        console.say(f"stopped after {len(result.losses)} of {result.steps} steps; the best so far is kept: {path}")
    return identity_outcome(path, result.identity, facts, stopped=result.cancelled)


def _facts(result: PolishResult, captions: Sequence[str], faces: Faces) -> dict[str, Any]:
    """What --json tells of a run."""
    return {
        "steps": len(result.losses),
        "seconds": round(result.seconds, 2),
        "last_loss": result.losses[-1] if result.losses else None,
        "stopped": result.cancelled,
        "captions": list(captions),
        "faces": faces.prepared.report(),
    }


def _as_it_was(job: _Job) -> str:
    """What a run that has done nothing leaves."""
    if job.checkpoint is not None and job.checkpoint.exists():
        return f"{job.checkpoint} is as it was, and the same command goes on from it"
    return f"{job.out} is as it was"
