"""The main command: pictures of a subject to everything one wants of it, in one folder."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .console import Console, Outcome
from .flags import add_config_flags, config_from_flags, whole_number
from .preparing import add_reference_flags, open_recognizer, prepare_subject, read_pictures
from .prompts import add_prompt_flags, check_words, resolve_prompts
from .subject import add_base_flags, add_caption_flag, bundled_hypernetwork, captions_of, load

if TYPE_CHECKING:
    from ..pipelines.base import Base
    from ..pipelines.personalize import Judge, PersonalizeConfig, PersonalizeResult
    from ..pipelines.predictors.stored_hypernetwork import StoredHypernetwork

# One --seed and one pair of names serve all stages.
_POLISH_SKIPPED = ("seed", "identifier", "class_noun")
_POLISH_FLAGS = {"steps": "finetune-steps", "batch": "finetune-batch"}
_SAMPLE_FLAGS = {"steps": "sample-steps", "batch": "sample-batch"}
_EXPORT_FLAGS = {"dtype": "lora-dtype"}


def add_personalize(parser: argparse.ArgumentParser) -> None:
    """Flags of `personalize`."""
    from ..pipelines.drawing.draw import DrawConfig
    from ..pipelines.export import ExportConfig
    from ..pipelines.polishing.polish import PolishConfig
    from ..pipelines.predictors.predict import PredictConfig

    add_reference_flags(parser)
    add_caption_flag(parser)
    add_prompt_flags(parser)
    add_base_flags(parser)
    parser.add_argument(
        "--hypernetwork",
        metavar="FILE",
        help="predictor for the base, or 'none' to finetune from nothing (default: the miniature's own on the "
        "miniature, none elsewhere)",
    )
    parser.add_argument(
        "--seed", type=whole_number, default=0, metavar="N", help="of finetuning and drawing (default: 0)"
    )
    parser.add_argument("--name", metavar="TEXT", help="what the files are called (default: as the first picture)")
    parser.add_argument(
        "--out", type=Path, default=Path("personalized"), metavar="DIR", help="results (default: personalized)"
    )
    add_config_flags(parser.add_argument_group("prediction"), PredictConfig)
    group = parser.add_argument_group("finetuning")
    add_config_flags(group, PolishConfig, _POLISH_FLAGS, _POLISH_SKIPPED)
    add_config_flags(parser.add_argument_group("drawing"), DrawConfig, _SAMPLE_FLAGS, ("seed",))
    group = parser.add_argument_group("LoRA export")
    add_config_flags(group, ExportConfig, _EXPORT_FLAGS, ("strength",))


def personalize(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Predict, polish, save, export, draw and report."""
    from ..pipelines.diffusers.loading import base_family
    from ..pipelines.personalize import Watch
    from ..pipelines.personalize import personalize as run

    config = _config(arguments)
    prompts = resolve_prompts(arguments, config.predict.identifier, config.predict.class_noun)
    config = replace(config, prompts=tuple(prompts))
    results = console.open_results(arguments.out)
    pictures = read_pictures(arguments)
    family = base_family(arguments.base)
    size = config.sample.size or family.picture_size
    check_words(arguments, prompts, config.predict.identifier, family.name)
    references = prepare_subject(arguments, console, pictures, family.name, size, config.predict.class_noun)
    base = load(arguments)
    hypernetwork = _hypernetwork(arguments, base, console)
    if config.polish.steps:
        config = replace(config, captions=captions_of(arguments, base, references.pixels))
    judge, likeness = _judge(arguments, family.name, hypernetwork)
    watch = Watch(stage=console.progress, judge=judge, likeness=likeness)
    result = run(base, hypernetwork, references, results, config, watch)
    console.note(result.report["notes"])
    if result.cancelled:
        console.say(f"stopped; the best so far is kept in {arguments.out}")
    return Outcome(result.report, _summary(result), stopped=result.cancelled)


def _config(arguments: argparse.Namespace) -> PersonalizeConfig:
    from ..pipelines.drawing.draw import DrawConfig
    from ..pipelines.export import ExportConfig
    from ..pipelines.personalize import PersonalizeConfig
    from ..pipelines.polishing.polish import PolishConfig
    from ..pipelines.predictors.predict import PredictConfig

    predict = config_from_flags(PredictConfig, arguments)
    return PersonalizeConfig(
        name=arguments.pictures[0].stem if arguments.name is None else arguments.name,
        predict=predict,
        polish=config_from_flags(
            PolishConfig,
            arguments,
            seed=arguments.seed,
            identifier=predict.identifier,
            class_noun=predict.class_noun,
        ),
        sample=config_from_flags(DrawConfig, arguments, seed=arguments.seed),
        export=config_from_flags(ExportConfig, arguments),
    )


def _hypernetwork(arguments: argparse.Namespace, base: Base, console: Console) -> StoredHypernetwork | None:
    from ..pipelines.predictors.stored_hypernetwork import load_hypernetwork

    if arguments.hypernetwork == "none":
        return None
    if arguments.hypernetwork is not None:
        return load_hypernetwork(arguments.hypernetwork, base.device)
    if base.family.name == "miniature":
        return load_hypernetwork(bundled_hypernetwork(), base.device)
    console.note([f"no predictor is named for {base.family.title}, so the identity is finetuned from nothing"])
    return None


def _judge(
    arguments: argparse.Namespace, family: str, hypernetwork: StoredHypernetwork | None
) -> tuple[Judge | None, str]:
    """Who measures likeness, and what to say about it."""
    from ..faces.detectors import open_detector
    from ..faces.likeness import NOT_MEASURED, LikenessJudge, independence
    from ..faces.prepare import PrepareConfig
    from ..miniature.trial.judges import JudgeRecognizer

    recognizer = open_recognizer(arguments, family)
    if recognizer is None:
        return None, NOT_MEASURED
    if isinstance(recognizer, JudgeRecognizer):
        return recognizer.compare, f"measured by {recognizer.about}"
    config = config_from_flags(PrepareConfig, arguments)
    name = "auto" if config.detector == "already-cropped" else config.detector
    detector = open_detector(name, config.face_models)[0]
    text = f"measured by {recognizer.about} on faces found by {detector.about}"
    warning = independence(recognizer, hypernetwork.training) if hypernetwork is not None else ""
    return LikenessJudge(recognizer, detector, config.min_score), f"{text}; {warning}" if warning else text


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
