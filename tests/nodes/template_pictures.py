"""The templates' pictures, made anew from what the templates draw in a real ComfyUI; to be run when a weight changes.

    COMFYUI_PATH=... HYPERDREAM_COMFYUI_PYTHON=... python -m tests.nodes.template_pictures [NUMBER ...]

Writes `example_workflows/*.jpg`. Template 2 is for a checkpoint of the user's own, so its picture shows none of its
results.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.comfyui_server import Graph, Server, running_comfyui
from hyperdream_core.miniature.world.captions import reference_context
from hyperdream_core.miniature.world.people import random_people
from hyperdream_core.miniature.world.portrait import render_people
from hyperdream_core.miniature.world.view import random_view
from hyperdream_core.pictures.files import read_image, save_image
from hyperdream_core.pictures.grid import PAPER, labelled_grid

from .conftest import ROOT
from .templates import template_graph
from .test_real_comfyui import COMFYUI, NOT_REQUIRED, PYTHON

SIZE = (640, 400)
PORTRAIT = read_image(ROOT / "examples" / "portrait.png")
Shown = dict[str, list[Tensor]]
"""The pictures (3, h, w) of each preview by its number in the template"""


class Stage:
    """A ComfyUI in which templates are run.

    Args:
        server: of it.
    """

    def __init__(self, server: Server) -> None:
        self.server, self.known = server, server.nodes()

    def graph(self, number: int) -> Graph:
        """A template as it comes."""
        return template_graph(number, self.known)

    def run(self, graph: Graph) -> tuple[Shown, dict[str, Any]]:
        """Its pictures, and everything that its nodes say."""
        outputs = self.server.run(graph)
        return {
            key: [_tensor(self.server.shown({"images": [one]})) for one in output["images"]]
            for key, output in outputs.items()
            if "images" in output
        }, outputs


def quickstart(stage: Stage) -> Image.Image:
    shown, _ = stage.run(stage.graph(1))
    return _beside("your portrait", shown["14"], ["drawn anew,", "smiling, at sunset", "", ""])


def photograph_to_lora(stage: Stage) -> Image.Image:
    said = "polished on your own checkpoint, saved as a LoRA for every program"
    return _sheet(labelled_grid([[_somebody(512)]], ["your picture"], caption=said, cell=220))


def polish(stage: Stage) -> Image.Image:
    shown, said = stage.run(stage.graph(3))
    likeness = {key: _said(said[key]).splitlines()[0].partition(",")[0] for key in ("17", "25")}
    names = ["your portrait", f"predicted\n{likeness['17']}", f"polished\n{likeness['25']}"]
    return _sheet(_row([PORTRAIT, shown["16"][0], shown["24"][0]], names))


def blend(stage: Stage) -> Image.Image:
    save_image(stage.server.folder / "input" / "other.png", _somebody(256))
    first, second = stage.graph(1), stage.graph(1)
    second["2"]["inputs"]["image"] = "other.png"
    second["15"]["inputs"]["name"] = "bruno"
    for graph in (first, second):
        stage.run(graph)
    graph = stage.graph(4)
    for loader, name in (("2", "portrait"), ("3", "bruno")):
        graph[loader]["inputs"]["identity"] = f"{name}.safetensors"
    pictures = []
    for share in (0.0, 0.5, 1.0):
        graph["4"]["inputs"]["share"] = share
        pictures.append(stage.run(graph)[0]["13"][0])
    return _sheet(_row(pictures, ["first person", "between them", "second person"]))


def strength(stage: Stage) -> Image.Image:
    shown, _ = stage.run(stage.graph(5))
    names = ["strength 0", "strength 0.5", "strength 1", "1, from 0.3 on"]
    return _beside("the person", [shown[key][0] for key in ("14", "19", "24", "29")], names)


def hybrid(stage: Stage) -> Image.Image:
    shown, _ = stage.run(stage.graph(6))
    names = ["plain", "the base alone", "hybrid", "hybrid, scheduled"]
    return _beside("the person", [shown[key][0] for key in ("12", "17", "22", "27")], names)


def two_people(stage: Stage) -> Image.Image:
    shown, _ = stage.run(stage.graph(7))
    names = ["one person", "left the one, right the other", "another person"]
    return _sheet(_row([PORTRAIT, shown["24"][0], shown["15"][0]], names))


PICTURES: dict[int, Callable[[Stage], Image.Image]] = {
    1: quickstart, 2: photograph_to_lora, 3: polish, 4: blend, 5: strength, 6: hybrid, 7: two_people,
}  # fmt: skip


def _somebody(side: int) -> Tensor:
    """A second person, (3, side, side), told from the example portrait's at a glance."""
    generator = torch.Generator().manual_seed(14)
    view, context = random_view(1, generator), reference_context(1, generator)
    return render_people(random_people(1, generator), context, view, side)[0]


def _tensor(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture).movedim(-1, 0).float() / 255


def _said(output: dict[str, Any]) -> str:
    return "".join(output["text"])


def _row(pictures: Sequence[Tensor], names: Sequence[str]) -> Image.Image:
    """Pictures side by side as large as a template's picture has room for."""
    return labelled_grid([pictures], names, cell=min(280, (SIZE[0] - 70) // len(pictures)))


def _beside(name: str, pictures: Sequence[Tensor], names: Sequence[str]) -> Image.Image:
    """The portrait, and four pictures two by two."""
    rows = [labelled_grid([pictures[k : k + 2]], names[k : k + 2], cell=145) for k in (0, 2)]
    square = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), PAPER)
    for row, top in zip(rows, (0, rows[0].height), strict=True):
        square.paste(row, (0, top))
    return _sheet(labelled_grid([[PORTRAIT]], [name], cell=250), square)


def _sheet(*parts: Image.Image) -> Image.Image:
    """Parts side by side in the middle of a template's picture."""
    sheet = Image.new("RGB", SIZE, PAPER)
    left = (SIZE[0] - sum(part.width for part in parts)) // 2
    for part in parts:
        sheet.paste(part, (left, (SIZE[1] - part.height) // 2))
        left += part.width
    return sheet


def main() -> None:
    """Draw the pictures of the templates that are named, or of all."""
    numbers = [int(one) for one in sys.argv[1:]] or list(PICTURES)
    with tempfile.TemporaryDirectory() as place, running_comfyui(COMFYUI, PYTHON, Path(place), NOT_REQUIRED) as server:
        stage = Stage(server)
        (server.folder / "input").mkdir(exist_ok=True)
        for number in numbers:
            (template,) = (ROOT / "example_workflows").glob(f"{number} *.json")
            PICTURES[number](stage).save(template.with_suffix(".jpg"), quality=88, optimize=True)
            print(template.with_suffix(".jpg").name, flush=True)


if __name__ == "__main__":
    main()
