"""`hyperdream miniature render`: invented subjects in contexts and views of the caller's choice."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import Console, Outcome
from ..flags import finite_number, place, whole_number

if TYPE_CHECKING:
    from ...miniature.world.captions import Context
    from ...miniature.world.view import View

_VIEW = {
    "turn": (-1.0, 1.0, "turn of the head, -1 left to 1 right"),
    "tilt": (-45.0, 45.0, "tilt of the head, degrees"),
    "zoom": (0.5, 2.0, "size of the subject, 1 is usual"),
    "light": (-1.0, 1.0, "where the light comes from, -1 left to 1 right"),
    "light-strength": (0.0, 1.0, "contrast of that light, 0 to 1"),
    "occlusion": (0.0, 1.0, "share of the face hidden from below, 0 to 1"),
}
"""Dials of the view: lowest and highest value, and what they say."""
_LIMITS = {"people": (1, 10_000), "contexts": (1, 1000), "size": (32, 2048), "seed": (0, 2**40)}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `miniature render`."""
    parser.add_argument("--people", type=whole_number, default=8, metavar="N", help="subjects to invent (default: 8)")
    parser.add_argument("--contexts", type=whole_number, default=1, metavar="N", help="pictures of each (default: 1)")
    parser.add_argument("--noun", choices=("face", "pet"), default="face", help="kind of subject (default: face)")
    parser.add_argument(
        "--folders", action="store_true",
        help="a folder for each subject, and captions in text files, as `hyperdream corpus collect` reads them",
    )  # fmt: skip
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
    for name, (_, _, text) in _VIEW.items():
        parser.add_argument(f"--{name}", type=finite_number, metavar="X", help=f"{text} (default: slightly varied)")
    parser.add_argument(
        "--out", type=place, default=Path("portraits"), metavar="DIR", help="folder to write to (default: portraits)"
    )


def run(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Portraits as PNG files with their captions."""
    import torch

    from ...errors import ConfigError
    from ...miniature.world.captions import make_captions
    from ...miniature.world.people import random_people
    from ...miniature.world.pets import random_pets, render_pets
    from ...miniature.world.portrait import render_people
    from ...miniature.world.view import random_view
    from ...pictures.files import save_image
    from ...pipelines.before_work import bytes_of_pictures

    for name, (least, most) in _LIMITS.items():
        if not least <= getattr(arguments, name) <= most:
            raise ConfigError(f"{name} must lie in {least}..{most}, got {getattr(arguments, name)}")
    total = arguments.people * arguments.contexts
    between = "/" if arguments.folders else "-"
    names = [
        f"{arguments.noun}-{row // arguments.contexts + 1:04d}{between}{row % arguments.contexts + 1}.png"
        for row in range(total)
    ]
    results = console.open_results(arguments.out, names, bytes_of_pictures(total, arguments.size))
    generator = torch.Generator().manual_seed(arguments.seed)
    subjects: Any = (random_people if arguments.noun == "face" else random_pets)(arguments.people, generator)
    context = _context(arguments, total, generator)
    view = _view(arguments, random_view(total, generator))
    captions = make_captions(context, arguments.noun)
    paint: Any = render_people if arguments.noun == "face" else render_pets
    made = []
    with console.progress("rendering", "picture") as progress:
        for row in range(total):
            progress(row, total)
            one = torch.tensor([row])
            seen = type(view)(**{name: value[one] for name, value in vars(view).items()})
            picture = paint(subjects[one // arguments.contexts], context[one], seen, arguments.size)[0]
            facts = {"caption": captions[row], "seed": str(arguments.seed)}
            path = results.keep(names[row], partial(save_image, image=picture, texts=facts))
            made.append({"file": str(path), "caption": captions[row]})
            if arguments.folders:
                said = captions[row].partition(", ")[2]
                results.keep_text(str(Path(names[row]).with_suffix(".txt")), f"{said}\n")
        progress(total, total)
    results.close()
    return Outcome({"pictures": made}, "\n".join(f"{one['file']}  {one['caption']}" for one in made))


def _context(arguments: argparse.Namespace, count: int, generator: Any) -> Context:
    """Contexts of the pictures: what --caption and --plain say, and the rest at random."""
    import torch

    from ...errors import PromptError
    from ...miniature.world.captions import ATTRIBUTES, Context, random_context, reference_context

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


def _view(arguments: argparse.Namespace, view: View) -> View:
    """The view with the dials that were given in place of chance."""
    import torch

    from ...errors import ConfigError

    given = {}
    for name, (low, high, _) in _VIEW.items():
        value = getattr(arguments, name.replace("-", "_"))
        if value is None:
            continue
        if not low <= value <= high:
            raise ConfigError(f"{name} must lie in {low:g}..{high:g}, got {value:g}")
        given[name] = torch.full_like(view.turn, value)
    light, strength = view.light.unbind(-1)
    return replace(
        view,
        turn=given.get("turn", view.turn),
        tilt=given["tilt"] * (math.pi / 180.0) if "tilt" in given else view.tilt,
        zoom=given["zoom"] - 1.0 if "zoom" in given else view.zoom,
        light=torch.stack([given.get("light", light), given.get("light-strength", strength)], -1),
        occlusion=given.get("occlusion", view.occlusion),
    )
