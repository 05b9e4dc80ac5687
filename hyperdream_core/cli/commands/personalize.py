"""`hyperdream personalize`: pictures of a subject to everything one wants of it, in one folder."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..base_flags import BaseChoice, add_base_flags, add_caption_flag, add_memory_flag, captions_of, memory_of
from ..console import Console, Outcome
from ..flags import add_config_flags, config_from_flags, place, whole_number
from ..prompt_flags import Prompts, add_prompt_flags
from ..reference_flags import References, add_reference_flags

if TYPE_CHECKING:
    from ...faces.likeness import Likeness
    from ...faces.prepared_faces import Faces
    from ...pipelines.base import Base
    from ...pipelines.personalize import PersonalizeConfig, PersonalizeResult
    from ...pipelines.predictors.predictor import Predictor

# One --seed and one pair of names serve all stages.
_POLISH_SKIPPED = ("seed", "identifier", "class_noun")
_POLISH_FLAGS = {"steps": "polish-steps", "batch": "polish-batch"}
_DRAW_FLAGS = {"steps": "draw-steps", "batch": "draw-batch"}
_EXPORT_FLAGS = {"dtype": "lora-dtype"}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `personalize`."""
    from ...pipelines.drawing.draw import DrawConfig
    from ...pipelines.export import ExportConfig
    from ...pipelines.polishing.polish_config import PolishConfig
    from ...pipelines.predictors.predict import PredictConfig

    add_reference_flags(parser)
    add_caption_flag(parser)
    add_prompt_flags(parser)
    add_base_flags(parser)
    add_memory_flag(parser)
    parser.add_argument(
        "--predictor",
        metavar="FILE",
        help="predictor for the base, or 'none' to polish from scratch (default: the one that is shipped for the base, "
        "if there is one)",
    )
    parser.add_argument("--hypernetwork", dest="predictor", help=argparse.SUPPRESS)
    parser.add_argument(
        "--seed", type=whole_number, default=0, metavar="N", help="of polishing and drawing (default: 0)"
    )
    parser.add_argument("--name", metavar="TEXT", help="what the files are called (default: as the first picture)")
    parser.add_argument(
        "--out", type=place, default=Path("personalized"), metavar="DIR", help="results (default: personalized)"
    )
    add_config_flags(parser.add_argument_group("prediction"), PredictConfig)
    add_config_flags(parser.add_argument_group("polishing"), PolishConfig, _POLISH_FLAGS, _POLISH_SKIPPED)
    add_config_flags(parser.add_argument_group("drawing"), DrawConfig, _DRAW_FLAGS, ("seed",))
    add_config_flags(parser.add_argument_group("LoRA export"), ExportConfig, _EXPORT_FLAGS, ("strength",))


@dataclass(frozen=True, kw_only=True)
class _Job:
    references: References
    captions: list[str]
    prompts: Prompts
    base: BaseChoice
    predictor: str | None
    config: PersonalizeConfig
    out: Path


def run(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Predict, polish, save, export, draw and report."""
    job = _Job(
        references=References.of(arguments),
        captions=arguments.caption,
        prompts=Prompts.of(arguments),
        base=BaseChoice.of(arguments),
        predictor=arguments.predictor,
        config=_config(arguments),
        out=arguments.out,
    )
    return _personalize(job, console)


def _config(arguments: argparse.Namespace) -> PersonalizeConfig:
    from ...formats.file_names import check_name, plain_name
    from ...pipelines.drawing.draw import DrawConfig
    from ...pipelines.export import ExportConfig
    from ...pipelines.personalize import PersonalizeConfig
    from ...pipelines.polishing.polish_config import PolishConfig
    from ...pipelines.predictors.predict import PredictConfig

    predict = config_from_flags(PredictConfig, arguments)
    words = {"identifier": predict.identifier, "class_noun": predict.class_noun}
    return PersonalizeConfig(
        name=plain_name(arguments.pictures[0].stem) if arguments.name is None else check_name(arguments.name),
        predict=predict,
        polish=config_from_flags(PolishConfig, arguments, seed=arguments.seed, **words),
        draw=config_from_flags(DrawConfig, arguments, seed=arguments.seed),
        export=config_from_flags(ExportConfig, arguments),
        memory=memory_of(arguments),
    )


def _personalize(job: _Job, console: Console) -> Outcome:
    from ...miniature.companions import companions_of
    from ...pipelines.before_work import check_texts
    from ...pipelines.personalize import Onlookers, personalize

    config, words = job.config, job.config.predict
    prompts = job.prompts.resolved(words.identifier, words.class_noun)
    config = replace(config, prompts=tuple(prompts))
    check_texts(caption=job.captions)
    results = console.open_results(job.out, config.file_names())
    pictures = job.references.read()
    family = job.base.family
    results.check(room=config.bytes_written(family))
    job.base.check_memory(config.polish, config.draw.size, config.memory)
    job.prompts.check_words(prompts, words.identifier, family.name)
    console.note(job.prompts.syntax_notes(family.name))
    faces = job.references.prepare(console, pictures, family.name, words.class_noun)
    base = job.base.load(console)
    predictor = _predictor(job.predictor, base, console)
    if config.polish.steps != 0:
        config = replace(config, captions=captions_of(job.captions, base, faces))
    judge, judged = _likeness(job.references, faces, family.name, predictor)
    said: list[str] = []

    def say(note: str) -> None:
        console.note([note])
        said.append(note)

    watch = Onlookers(stage=console.progress, judge=judge, judged=judged, say=say)
    result = personalize(base, faces, results, config, predictor, companions_of(family.name), watch)
    console.note([note for note in result.report["notes"] if note not in said])
    if result.cancelled:
        console.say(f"stopped; the best so far is kept in {job.out}")
    return Outcome(result.report, _summary(result), stopped=result.cancelled)


def _predictor(source: str | None, base: Base, console: Console) -> Predictor | None:
    from ...bundled import bundled_predictor
    from ...pipelines.polishing.polish_config import STEPS_FROM_SCRATCH
    from ...pipelines.predictors.predictor import open_predictor

    if source == "none":
        return None
    if source is not None:
        return open_predictor(source, base.device)
    if bundled_predictor(base.family.name) is not None:
        return open_predictor(base.family.name, base.device)
    title = base.family.title
    console.note(
        [f"no predictor is named for {title}, so the person is made by polishing from scratch, {STEPS_FROM_SCRATCH} "
         "steps unless --polish-steps says otherwise"]
    )  # fmt: skip
    return None


def _likeness(
    references: References, faces: Faces, family: str, predictor: Predictor | None
) -> tuple[Likeness | None, str]:
    """Who measures likeness, and what to say about it."""
    from ...faces.likeness import NOT_MEASURED, independence, open_likeness

    recognizer = references.recognizer(family)
    if recognizer is None:
        return None, NOT_MEASURED
    config = references.config
    measures, text = open_likeness(faces, recognizer, config.detector, config.face_models, config.min_score)
    warning = independence(recognizer, predictor.training) if predictor is not None else ""
    return measures, f"{text}; {warning}" if warning else text


def _summary(result: PersonalizeResult) -> str:
    seconds = result.report["seconds"]
    lines = [f"{path} ({path.stat().st_size / 1000:,.0f} KB)" for path in result.files]
    stages = ", ".join(f"{stage} {value:.1f} s" for stage, value in seconds.items() if stage != "all")
    lines.append(f"{seconds['all']:.1f} s: {stages}")
    if result.report["likeness"]:
        likeness = ", ".join(f"{label} {value:.2f}" for label, value in result.report["likeness"].items())
        lines.append(f"likeness: {likeness} ({result.report['likeness_by']})")
    else:
        lines.append(f"likeness {result.report['likeness_by']}")
    return "\n".join(lines)
