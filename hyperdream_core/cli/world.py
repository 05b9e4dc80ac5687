"""The miniature's commands: the trial of all methods, the recipe that builds its weights, and its portraits."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import Console, Outcome
from .flags import add_config_flags, config_from_flags, given_values, whole_number

if TYPE_CHECKING:
    from ..miniature.captions import Context
    from ..miniature.recipe import RecipeConfig


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Flags of `evaluate`."""
    from ..miniature.evaluation import EvaluateConfig

    parser.add_argument(
        "--weights", type=Path, metavar="DIR", help="folder of base, hypernetwork and judges (default: the shipped one)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write table.md and figures.json to this folder")
    add_config_flags(parser, EvaluateConfig)


def evaluate(arguments: argparse.Namespace, console: Console) -> Outcome:
    """The trial's table."""
    from ..miniature.evaluation import EvaluateConfig
    from ..miniature.evaluation import evaluate as run

    config = config_from_flags(EvaluateConfig, arguments)
    results = console.open_results(arguments.out) if arguments.out else None
    with console.progress("evaluating", "method") as progress:
        report = run(config, progress, arguments.weights)
    if results is not None:
        results.keep("table.md", lambda path: path.write_text(report.table + "\n", encoding="utf-8"))
        results.keep_json("figures.json", report.figures)
        results.close()
    # The table needs a base and a ceiling to compare with; without them the figures are all there is.
    text = report.table or json.dumps(report.figures["rows"], indent=2)
    return Outcome({"table": report.table, **report.figures}, text)


def add_miniature(parser: argparse.ArgumentParser) -> None:
    """The commands below `miniature`."""
    commands = parser.add_subparsers(metavar="build|render", title="commands", required=True)
    for name, text, add_flags, run in (
        ("build", "train everything under weights/miniature from nothing; resumable", _add_build, build),
        ("render", "draw portraits of invented subjects", _add_render, render),
    ):
        below = commands.add_parser(name, help=text, description=text)
        below.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object")
        below.set_defaults(run=run, parser=below)
        add_flags(below)


def _add_build(parser: argparse.ArgumentParser) -> None:
    from ..miniature.recipe import RecipeConfig

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

    from ..miniature.evaluation import EvaluateConfig
    from ..miniature.evaluation import evaluate as run
    from ..miniature.publish import publish, write_card
    from ..miniature.recipe import Recipe

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
    trial = EvaluateConfig()
    if arguments.quick:
        trial = EvaluateConfig(people=2, prompts=2, methods=("ceiling", "base", "prediction"), sample_steps=2)
    with console.progress("evaluating", "method") as progress:
        report = run(trial, progress, arguments.out)
    write_card(arguments.out, report.table, report.figures)
    data = {"folder": str(arguments.out), "seconds": recipe.seconds(), **report.figures}
    return Outcome(data, f"{report.table}\n{arguments.out}")


def _recipe_config(arguments: argparse.Namespace) -> RecipeConfig:
    from ..config import config_from_json, config_to_json
    from ..errors import ConfigError
    from ..miniature.recipe import RecipeConfig, quick

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


def _add_render(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--people", type=whole_number, default=8, metavar="N", help="subjects to invent (default: 8)")
    parser.add_argument("--contexts", type=whole_number, default=1, metavar="N", help="pictures of each (default: 1)")
    parser.add_argument("--noun", choices=("face", "pet"), default="face", help="kind of subject (default: face)")
    parser.add_argument("--plain", action="store_true", help="reference photographs, not any expression and place")
    parser.add_argument(
        "--caption", metavar="TEXT", help='what all pictures show, such as "smiling, wearing a hat" (default: anything)'
    )
    parser.add_argument(
        "--seed", type=whole_number, default=0, metavar="N", help="decides subjects and views (default: 0)"
    )
    parser.add_argument(
        "--size", type=whole_number, default=128, metavar="N", help="side of the pictures, px (default: 128)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("portraits"), metavar="DIR", help="folder to write to (default: portraits)"
    )


def render(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Portraits as PNG files with their captions."""
    import torch

    from ..data.images import save_image
    from ..errors import ConfigError
    from ..miniature.captions import make_captions
    from ..miniature.people import random_people
    from ..miniature.pets import random_pets, render_pets
    from ..miniature.portrait import render_people
    from ..miniature.view import random_view

    for name, least in (("people", 1), ("contexts", 1), ("size", 32), ("seed", 0)):
        if getattr(arguments, name) < least:
            raise ConfigError(f"{name} must be {least} or more, got {getattr(arguments, name)}")
    results = console.open_results(arguments.out)
    generator = torch.Generator().manual_seed(arguments.seed)
    total = arguments.people * arguments.contexts
    subjects: Any = (random_people if arguments.noun == "face" else random_pets)(arguments.people, generator)
    context = _context(arguments, total, generator)
    view = random_view(total, generator)
    captions = make_captions(context, arguments.noun)
    paint: Any = render_people if arguments.noun == "face" else render_pets
    made = []
    with console.progress("rendering", "picture") as progress:
        for row in range(total):
            progress(row, total)
            one = torch.tensor([row])
            seen = type(view)(**{name: value[one] for name, value in vars(view).items()})
            picture = paint(subjects[one // arguments.contexts], context[one], seen, arguments.size)[0]
            name = f"{arguments.noun}-{row // arguments.contexts + 1:04d}-{row % arguments.contexts + 1}.png"
            facts = {"caption": captions[row], "seed": str(arguments.seed)}
            path = results.keep(name, partial(save_image, image=picture, texts=facts))
            made.append({"file": str(path), "caption": captions[row]})
        progress(total, total)
    results.close()
    return Outcome({"pictures": made}, "\n".join(f"{one['file']}  {one['caption']}" for one in made))


def _context(arguments: argparse.Namespace, count: int, generator: Any) -> Context:
    """Contexts of the pictures: what --caption and --plain say, and the rest at random."""
    import torch

    from ..errors import PromptError
    from ..miniature.captions import ATTRIBUTES, Context, random_context, reference_context

    context = (reference_context if arguments.plain else random_context)(count, generator)
    if not arguments.caption:
        return context
    fixed = dict(vars(context))
    for part in filter(None, (text.strip().lower() for text in arguments.caption.split(","))):
        found = [(name, values.index(part)) for name, values in ATTRIBUTES.items() if part in values]
        if not found:
            known = "; ".join(", ".join(filter(None, values)) for values in ATTRIBUTES.values())
            raise PromptError(f"caption part {part!r} is nothing the renderer can draw; it knows: {known}")
        name, index = found[0]
        fixed[name] = torch.full((count,), index)
    return Context(**fixed)
