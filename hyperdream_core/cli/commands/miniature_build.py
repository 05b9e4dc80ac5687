"""`hyperdream miniature build`: the embedded world's weights, trained from nothing, stage by stage."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import Console, Outcome
from ..flags import add_config_flags, given_values, place

if TYPE_CHECKING:
    from ...miniature.recipe.materials import RecipeConfig


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `miniature build`."""
    from ...miniature.recipe.materials import RecipeConfig

    parser.add_argument(
        "--work", type=place, default=Path("miniature-work"), metavar="DIR",
        help="folder of corpora and checkpoints; the same one goes on where it stopped (default: miniature-work)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=place, default=Path("miniature"), metavar="DIR", help="folder of the weights (default: miniature)"
    )
    parser.add_argument("--config", type=place, metavar="FILE", help="JSON with any of the recipe's settings")
    parser.add_argument("--quick", action="store_true", help="toy sizes: the whole recipe in a minute, to see it run")
    add_config_flags(parser, RecipeConfig)


def run(arguments: argparse.Namespace, console: Console) -> Outcome:
    """The recipe, its trial, and the model card."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from ...miniature.recipe.publish import PUBLISHED, publish, write_card
    from ...miniature.recipe.recipe import Recipe
    from ...miniature.trial.config import TrialConfig
    from ...miniature.trial.trial import evaluate

    config = _recipe_config(arguments)
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
    console.open_results(arguments.work, [], Recipe(arguments.work, config).room())
    console.open_results(arguments.out, [], room=PUBLISHED)
    console.on_stop = (
        f"finished stages and checkpoints are kept in {arguments.work}; the same command goes on from there"
    )
    with console.progress("building") as progress:
        recipe = Recipe(arguments.work, config, progress, console.say)
        publish(recipe, arguments.out)
    trial = TrialConfig()
    if arguments.quick:
        trial = TrialConfig(people=2, prompts=2, methods=("ceiling", "base", "prediction"), sample_steps=2)
    with console.progress("evaluating", "method") as progress:
        report = evaluate(trial, progress, arguments.out)
    write_card(arguments.out, report.table, report.figures)
    data = {"folder": str(arguments.out), "seconds": recipe.seconds(), **report.figures}
    return Outcome(data, f"{report.table}\n{arguments.out}")


def _recipe_config(arguments: argparse.Namespace) -> RecipeConfig:
    from ...config import config_from_json, config_to_json
    from ...errors import ConfigError, FileFormatError
    from ...json_text import read_json
    from ...miniature.recipe.materials import RecipeConfig, quick

    values: dict[str, Any] = config_to_json(quick() if arguments.quick else RecipeConfig())
    if arguments.config:
        try:
            read = read_json(arguments.config)
        except FileFormatError as error:
            raise ConfigError(f"{arguments.config}: is not a readable JSON object ({error.problem})") from error
        for name, value in read.items():
            # A stage's settings that the file leaves out stay as the recipe has them.
            both = isinstance(value, dict) and isinstance(values.get(name), dict)
            values[name] = {**values[name], **value} if both else value
    return config_from_json(RecipeConfig, {**values, **given_values(RecipeConfig, arguments)})
