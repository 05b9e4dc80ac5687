"""A photograph with two people, the second chosen: every door makes one identity and measures one likeness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hyperdream_webui.host import WebUI
from hyperdream_webui.jobs import Jobs
from hyperdream_webui.orders import FaceChoice, Order
from PIL import Image
from torch import Tensor

from hyperdream_core.formats.identity_file import read_identity
from hyperdream_core.identity import Identity
from tests.nodes.conftest import Host
from tests.webui.conftest import FakeModel

STORED = 1e-3
"""what the 16 bits of an identity file round, as a share of the largest change"""
CAPTION = "smiling, at the beach"
PROMPTS = ("a [V] face, smiling", "a [V] face, at the beach")


def array(files: Sequence[Path]) -> Tensor:
    """Pictures (n, h, w, 3) in 0..1, as ComfyUI's Load Image gives them."""
    pictures = [np.asarray(Image.open(file).convert("RGB"), dtype=np.float32) / 255 for file in files]
    return torch.from_numpy(np.stack(pictures))


class CommandLine:
    """The main command, which also draws what the others measure."""

    def __init__(self, run: Callable[..., Any], models: Path, out: Path) -> None:
        self.run, self.models, self.out = run, models, out

    def make(self, files: Sequence[Path], steps: int, size: int, face: int = 2) -> SimpleNamespace:
        ran = self.run(
            *("personalize", *files, "--prompt", *PROMPTS, "--name", "two", "--out", self.out, "--seed", 3, "--json"),
            *("--detector", "insightface", "--face-models", self.models, "--face-order", "left-to-right"),
            *("--face", face, "--recognizer", self.models / "tiny" / "w600k_r50.onnx"),
            *("--size", size, "--sample-steps", 3, "--finetune-steps", steps, "--caption", CAPTION),
            # One caption for each picture.
            *(("--caption", CAPTION) if len(files) > 1 else ()),
        )
        assert ran.code == 0, ran.error
        drawn = [self.out / f"two-{number:02}.png" for number in range(1, len(PROMPTS) + 1)]
        label = "polished" if steps else "predicted"
        identity = read_identity(self.out / "two.safetensors")
        return SimpleNamespace(identity=identity, drawn=drawn, likeness=ran.json["likeness"][label])


def comfy_faces(host: Host, files: Sequence[Path], face: int = 2) -> Any:
    choice: dict[str, Any] = {"detector": "insightface", "order": "left-to-right", "index": face, "on_no_face": "stop"}
    return host.run("PrepareFace", image=array(files), **choice)[0]


def comfy_identity(host: Host, miniature: Any, faces: Any, steps: int, size: int) -> Any:
    model, clip, vae = miniature
    (predictor,) = host.run("LoadPredictor", predictor="miniature (built in)")
    (identity,) = host.run("PredictIdentity", predictor=predictor, faces=faces)
    if steps == 0:
        return identity
    schema = host.module("").PolishIdentityAdvanced.define_schema()
    settings = {one.id: one.facts["default"] for one in schema.inputs if "default" in one.facts}
    settings |= {"steps": steps, "size": size, "caption": CAPTION, "seed": 3, "preview_every": 0}
    inputs = {"model": model, "clip": clip, "vae": vae, "faces": faces, "identity": identity}
    return host.run("PolishIdentityAdvanced", **inputs, **settings)[0]


class TabsHost(WebUI):
    """The tab's host: another checkpoint, whose pictures are those that the command line drew."""

    def __init__(self, drawn: Sequence[Path] = ()) -> None:
        self.drawn = drawn

    def loaded_base(self) -> Any:
        from hyperdream_webui import a1111_base

        return a1111_base.loaded_base()

    def draw(self, prompt: str, seed: int, size: int, steps: int) -> tuple[Image.Image, str]:
        return Image.open(self.drawn[seed - 3]), ""


def tabs_order(files: Sequence[Path], face: int = 2, **more: Any) -> Order:
    faces = FaceChoice(detector="insightface", order="left-to-right", face=face)
    facts: dict[str, Any] = {"files": files, "faces": faces, "caption": CAPTION, "seed": 3, "prompts": ""}
    return Order(**(facts | more))


def tabs_identity(files: Sequence[Path], steps: int) -> Identity:
    jobs = Jobs(TabsHost())
    return jobs.loras.read(jobs.create(tabs_order(files, on="miniature", steps=steps)).name)


def tabs_likeness(a1111: SimpleNamespace, files: Sequence[Path], drawn: Sequence[Path], face: int = 2) -> float:
    torch.manual_seed(0)
    a1111.shared.sd_model = FakeModel("sd15")
    order = tabs_order(
        files, face=face, predict=False, steps=1, batch=1, size=64, prompts="\n".join(PROMPTS), name=f"person {face}"
    )
    likeness = Jobs(TabsHost(drawn)).create(order).likeness
    assert likeness is not None
    return likeness


def changes(identity: Any) -> dict[str, Tensor]:
    return {name: pair.up @ pair.down for name, pair in identity.expand().items()}


def assert_same(first: Any, second: Any, tolerance: float) -> None:
    ours, others = changes(first), changes(second)
    assert ours.keys() == others.keys()
    largest = max(float(one.abs().max()) for one in ours.values())
    for name, one in ours.items():
        torch.testing.assert_close(one, others[name], atol=tolerance * largest, rtol=0)


@pytest.fixture
def command(run: Callable[..., Any], face_models: Path, tmp_path: Path) -> CommandLine:
    return CommandLine(run, face_models, tmp_path / "personalized")


@pytest.mark.parametrize("count", [1, 2])
def test_the_prediction_is_the_same_whatever_size_is_drawn(
    command: CommandLine, host: Host, miniature: Any, photographs: list[Path], count: int
) -> None:
    files = photographs[:count]
    first = command.make(files, steps=0, size=128).identity
    assert_same(first, comfy_identity(host, miniature, comfy_faces(host, files), 0, 64), STORED)
    assert_same(first, tabs_identity(files, 0), STORED)
    # It is of the one who was chosen.
    with pytest.raises(AssertionError):
        assert_same(first, comfy_identity(host, miniature, comfy_faces(host, files, face=1), 0, 64), 0.1)


def test_what_is_polished_is_the_same(
    command: CommandLine, host: Host, miniature: Any, photographs: list[Path]
) -> None:
    first = command.make(photographs, steps=2, size=64).identity
    assert first.made_by["finetune_steps"] == "2"
    # The bases compute in another order, and AdamW's first steps are as large for the smallest gradients.
    assert_same(first, comfy_identity(host, miniature, comfy_faces(host, photographs), 2, 64), 0.02)
    assert_same(first, tabs_identity(photographs, 2), STORED)


@pytest.mark.parametrize("count", [1, 2])
def test_likeness_is_to_the_one_who_was_chosen(
    command: CommandLine, host: Host, a1111: SimpleNamespace, photographs: list[Path], count: int
) -> None:
    files = photographs[:count]
    made = command.make(files, steps=0, size=128)
    images = array(made.drawn)
    in_comfyui, _ = host.run("MeasureLikeness", images=images, faces=comfy_faces(host, files))
    of_another, _ = host.run("MeasureLikeness", images=images, faces=comfy_faces(host, files, face=1))
    assert abs(of_another - made.likeness) > 0.03
    # The command measures what it drew, and the others what it wrote, in steps of 1 / 255.
    assert in_comfyui == pytest.approx(made.likeness, abs=0.01)
    assert tabs_likeness(a1111, files, made.drawn) == pytest.approx(made.likeness, abs=0.01)
