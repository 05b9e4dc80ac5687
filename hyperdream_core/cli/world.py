"""The miniature's commands: the trial of all methods and the recipe that builds its weights."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import Console, Outcome
from .flags import add_config_flags, config_from_flags, given_values
from .portraits import add_render, render

if TYPE_CHECKING:
    from ..miniature.recipe.materials import RecipeConfig


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Flags of `evaluate`."""
    from ..miniature.trial.config import TrialConfig

    parser.add_argument(
        "--weights", type=Path, metavar="DIR", help="folder of base, hypernetwork and judges (default: the shipped one)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write table.md and figures.json to this folder, and keep finished rows"
    )
    parser.add_argument(
        "--sweep",
        nargs="*",
        metavar="CURVE",
        help="draw curves of likeness against the prompt over strengths and scales instead: all of them, or those "
        "named: plain, hybrid, base-null, mix, blend, reference-null, scheduled, rescaled, 'weak null', banded; writes "
        "sweep.md, sweep.json and sweep.png",
    )
    add_config_flags(parser, TrialConfig)


def evaluate(arguments: argparse.Namespace, console: Console) -> Outcome:
    """The trial's table, or its curves."""
    from ..miniature.trial.config import TrialConfig
    from ..miniature.trial.trial import evaluate as run

    if arguments.sweep is not None:
        return _sweep(arguments, console)
    config = config_from_flags(TrialConfig, arguments)
    results = console.open_results(arguments.out) if arguments.out else None
    if arguments.out:
        console.on_stop = f"finished rows are kept in {arguments.out}; the same command goes on from there"
    with console.progress("evaluating", "method") as progress:
        report = run(config, progress, arguments.weights, keep=arguments.out)
    if results is not None:
        results.keep_text("table.md", report.table + "\n")
        results.keep_json("figures.json", report.figures)
        results.close()
    # The table needs a base and a ceiling to compare with; without them the figures are all there is.
    text = report.table or json.dumps(report.figures["rows"], indent=2)
    return Outcome({"table": report.table, **report.figures}, text)


def _sweep(arguments: argparse.Namespace, console: Console) -> Outcome:
    from ..errors import ConfigError
    from ..miniature.trial.config import TrialConfig
    from ..miniature.trial.sweep import SWEEP_METHODS
    from ..miniature.trial.sweep import sweep as run
    from ..pictures.files import save_image

    if arguments.out is None:
        raise ConfigError("a sweep takes long and makes a picture, and there is no folder for them; add --out DIR")
    config = config_from_flags(TrialConfig, arguments, **_methods(arguments, SWEEP_METHODS))
    results = console.open_results(arguments.out)
    console.on_stop = f"finished points are kept in {arguments.out}; the same command goes on from there"
    with console.progress("sweeping", "point") as progress:
        report = run(config, arguments.sweep, progress, arguments.weights, arguments.out)
    results.keep_text("sweep.md", report.table + "\n")
    results.keep_json("sweep.json", report.figures)
    results.keep("sweep.png", lambda path: save_image(path, report.picture))
    results.close()
    return Outcome({"table": report.table, **report.figures}, report.table)


def _methods(arguments: argparse.Namespace, default: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    from ..miniature.trial.config import TrialConfig

    return {} if "methods" in given_values(TrialConfig, arguments) else {"methods": default}


def add_miniature(parser: argparse.ArgumentParser) -> None:
    """The commands below `miniature`."""
    commands = parser.add_subparsers(metavar="build|render", title="commands", required=True)
    for name, text, add_flags, run in (
        ("build", "train everything under weights/miniature from nothing; resumable", _add_build, build),
        ("render", "draw portraits of invented subjects", add_render, render),
    ):
        below = commands.add_parser(name, help=text, description=text)
        below.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object")
        below.set_defaults(run=run, parser=below)
        add_flags(below)


def _add_build(parser: argparse.ArgumentParser) -> None:
    from ..miniature.recipe.materials import RecipeConfig

    parser.add_argument(
        "--work", type=Path, default=Path("miniature-work"), metavar="DIR",
        help="folder of corpora and checkpoints; the same one goes on where it stopped (default: miniature-work)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("miniature"), metavar="DIR", help="folder of the weights (default: miniature)"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="JSON with any of the recipe's settings")
    parser.add_argument("--quick", action="store_true", help="toy sizes: the whole recipe in a minute, to see it run")
    add_config_flags(parser, RecipeConfig)


def build(arguments: argparse.Namespace, console: Console) -> Outcome:
    """The recipe, its trial, and the model card."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from ..miniature.recipe.publish import publish, write_card
    from ..miniature.recipe.recipe import Recipe
    from ..miniature.trial.config import TrialConfig
    from ..miniature.trial.trial import evaluate as run

    config = _recipe_config(arguments)
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
    for folder in (arguments.work, arguments.out):
        console.open_results(folder)
    console.on_stop = (
        f"finished stages and checkpoints are kept in {arguments.work}; the same command goes on from there"
    )
    with console.progress("building") as progress:
        recipe = Recipe(arguments.work, config, progress)
        publish(recipe, arguments.out)
    trial = TrialConfig()
    if arguments.quick:
        trial = TrialConfig(people=2, prompts=2, methods=("ceiling", "base", "prediction"), sample_steps=2)
    with console.progress("evaluating", "method") as progress:
        report = run(trial, progress, arguments.out)
    write_card(arguments.out, report.table, report.figures)
    data = {"folder": str(arguments.out), "seconds": recipe.seconds(), **report.figures}
    return Outcome(data, f"{report.table}\n{arguments.out}")


def _recipe_config(arguments: argparse.Namespace) -> RecipeConfig:
    from ..config import config_from_json, config_to_json
    from ..errors import ConfigError
    from ..miniature.recipe.materials import RecipeConfig, quick

    values: dict[str, Any] = config_to_json(quick() if arguments.quick else RecipeConfig())
    if arguments.config:
        try:
            read = dict(json.loads(arguments.config.read_text("utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{arguments.config}: is not a readable JSON object ({error}); correct it") from error
        for name, value in read.items():
            # A stage's settings that the file leaves out stay as the recipe has them.
            both = isinstance(value, dict) and isinstance(values.get(name), dict)
            values[name] = {**values[name], **value} if both else value
    return config_from_json(RecipeConfig, {**values, **given_values(RecipeConfig, arguments)})
