"""The main command: pictures of a subject to everything one wants of it, in one folder."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .console import Console, Outcome
from .flags import add_config_flags, config_from_flags, whole_number
from .prompts import add_prompt_flags, check_words, resolve_prompts
from .subject import (
    add_base_flags,
    add_caption_flag,
    add_reference_flags,
    bundled_hypernetwork,
    captions_of,
    crop,
    load,
    read_pictures,
)

if TYPE_CHECKING:
    from ..pipelines.base import Base
    from ..pipelines.personalize import Judge, PersonalizeConfig, PersonalizeResult
    from ..pipelines.stored_hypernetwork import StoredHypernetwork

# One --seed and one pair of names serve all stages.
_FINETUNE_SKIPPED = ("seed", "identifier", "class_noun")
_FINETUNE_FLAGS = {"steps": "finetune-steps", "batch": "finetune-batch"}
_SAMPLE_FLAGS = {"steps": "sample-steps", "batch": "sample-batch"}
_EXPORT_FLAGS = {"dtype": "lora-dtype"}


def add_personalize(parser: argparse.ArgumentParser) -> None:
    """Flags of `personalize`."""
    from ..pipelines.export import ExportConfig
    from ..pipelines.finetune import FinetuneConfig
    from ..pipelines.predict import PredictConfig
    from ..pipelines.sample import SampleConfig

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
    add_config_flags(group, FinetuneConfig, _FINETUNE_FLAGS, _FINETUNE_SKIPPED)
    add_config_flags(parser.add_argument_group("drawing"), SampleConfig, _SAMPLE_FLAGS, ("seed",))
    group = parser.add_argument_group("LoRA export")
    add_config_flags(group, ExportConfig, _EXPORT_FLAGS, ("strength",))


def personalize(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Predict, polish, save, export, draw and report."""
    from ..pipelines.personalize import Watch
    from ..pipelines.personalize import personalize as run

    config = _config(arguments)
    prompts = resolve_prompts(arguments, config.predict.identifier, config.predict.class_noun)
    config = replace(config, prompts=tuple(prompts))
    results = console.open_results(arguments.out)
    pictures = read_pictures(arguments, console)
    base = load(arguments)
    check_words(arguments, prompts, config.predict.identifier, base.family.name)
    hypernetwork = _hypernetwork(arguments, base, console)
    references = crop(pictures, config.sample.size or base.family.picture_size)
    if config.finetune.steps:
        config = replace(config, captions=captions_of(arguments, base, references))
    watch = Watch(stage=console.progress, judge=_judge(base))
    result = run(base, hypernetwork, references, results, config, watch)
    console.note(result.report["notes"])
    if result.cancelled:
        console.say(f"stopped; the best so far is kept in {arguments.out}")
    return Outcome(result.report, _summary(result), stopped=result.cancelled)


def _config(arguments: argparse.Namespace) -> PersonalizeConfig:
    from ..pipelines.export import ExportConfig
    from ..pipelines.finetune import FinetuneConfig
    from ..pipelines.personalize import PersonalizeConfig
    from ..pipelines.predict import PredictConfig
    from ..pipelines.sample import SampleConfig

    predict = config_from_flags(PredictConfig, arguments)
    return PersonalizeConfig(
        name=arguments.pictures[0].stem if arguments.name is None else arguments.name,
        predict=predict,
        finetune=config_from_flags(
            FinetuneConfig,
            arguments,
            seed=arguments.seed,
            identifier=predict.identifier,
            class_noun=predict.class_noun,
        ),
        sample=config_from_flags(SampleConfig, arguments, seed=arguments.seed),
        export=config_from_flags(ExportConfig, arguments),
    )


def _hypernetwork(arguments: argparse.Namespace, base: Base, console: Console) -> StoredHypernetwork | None:
    from ..pipelines.stored_hypernetwork import load_hypernetwork

    if arguments.hypernetwork == "none":
        return None
    if arguments.hypernetwork is not None:
        return load_hypernetwork(arguments.hypernetwork, base.device)
    if base.family.name == "miniature":
        return load_hypernetwork(bundled_hypernetwork(), base.device)
    console.note([f"no predictor is named for {base.family.title}, so the identity is finetuned from nothing"])
    return None


def _judge(base: Base) -> Judge | None:
    """The miniature's identity judge; no base but the miniature has one of its own."""
    from ..data.bundled import bundled_weights
    from ..miniature.judges import load_judges

    folder = bundled_weights() / "miniature" / "judges"
    if base.family.name != "miniature" or not folder.is_dir():
        return None
    identity_judge = load_judges(folder)[0]
    return lambda pictures, references: (
        identity_judge(pictures.cpu()) @ identity_judge(references.cpu()).mean(0, keepdim=True).T
    ).squeeze(1)


def _summary(result: PersonalizeResult) -> str:
    seconds = result.report["seconds"]
    lines = [f"{path} ({path.stat().st_size / 1000:,.0f} KB)" for path in result.files]
    stages = ", ".join(f"{stage} {value:.1f} s" for stage, value in seconds.items() if stage != "all")
    lines.append(f"{seconds['all']:.1f} s: {stages}")
    if result.report["likeness"]:
        likeness = ", ".join(f"{label} {value:.2f}" for label, value in result.report["likeness"].items())
        lines.append(f"likeness: {likeness}")
    return "\n".join(lines)
