"""Seconds and memory of a training step in the real ComfyUI: our Polish Identity beside its own Train LoRA.

Both train at the same rank, batch, size, number format and number of steps, on one picture, on a checkpoint of the true
SD 1.5 shape with random weights, which the stock loader loads. Each has a server of its own, so that memory is its
own too. What differs is what they are: ours trains the attention layers, Train LoRA everything.

- `s a step`: between a short and a longer training, so that loading and encoding do not count. `wall` is waiting,
  `cpu` is the processor time of the server's process, which other work on the machine does not change.
- `peak MB`: of the server's process while it trains; `loaded MB`: after a picture was drawn with the checkpoint and the
  photograph was prepared.

Needs Linux, a checkout of ComfyUI and 17 GB of memory, twice as much as ours alone; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hyperdream_core.bases import get_base
from hyperdream_core.pipelines.diffusers.single_file_export import write_single_file

from .comfyui_server import Graph, Server, node, running_comfyui
from .processes import ROOT, forget_peak, memory, processor_seconds
from .random_bases import whole_base

CHECKPOINT = "sd15-random.safetensors"
LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Case:
    """What both train."""

    rank: int
    batch: int
    pixels: int
    steps: int
    saves_memory: bool


@dataclass(frozen=True)
class Result:
    """What one of them took."""

    wall: float
    cpu: float
    loaded: float
    peak: float


def write_checkpoint(path: Path) -> None:
    """Full SD 1.5 with random weights in fp16, 2.1 GB."""
    write_single_file(path, whole_base(get_base("sd15"), "cpu", torch.float16), torch.float16)


def loaded() -> Graph:
    """A picture in one step, which brings every part of the checkpoint to where it works."""
    ends = {"model": ["base", 0], "positive": ["prompt", 0], "negative": ["prompt", 0], "latent_image": ["empty", 0]}
    dials = {"seed": 1, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    return {
        "base": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "prompt": node("CLIPTextEncode", text="a sks face", clip=["base", 1]),
        "photograph": node("LoadImage", image="portrait.png"),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "drawn": node("KSampler", **ends, **dials),
        "picture": node("VAEDecode", samples=["drawn", 0], vae=["base", 2]),
        "shown": node("PreviewImage", images=["picture", 0]),
    }


def ours(server: Server, case: Case, steps: int) -> Graph:
    """The checkpoint polished."""
    settings = {"detector": "already-cropped", "order": "size", "index": 0, "on_no_face": "stop"}
    kind = "HyperDreamPolishIdentityAdvanced"
    dials = server.defaults(kind) | {"rank": case.rank, "batch": case.batch, "size": case.pixels, "steps": steps}
    dials |= {"learning_rate": LEARNING_RATE, "crops": 0, "holdout_every": 0, "preview_every": 0}
    dials["memory"] = "save memory" if case.saves_memory else "fast"
    wires = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2], "faces": ["faces", 0]}
    return {
        **loaded(),
        "faces": node("HyperDreamPrepareFace", image=["photograph", 0], **settings),
        "trained": node(kind, **dials, **wires),
        "end": node("PreviewImage", images=["trained", 1]),
    }


def theirs(server: Server, case: Case, steps: int) -> Graph:
    """The checkpoint trained by ComfyUI's own node."""
    dials = server.defaults("TrainLoraNode") | {"rank": case.rank, "batch_size": case.batch, "steps": steps}
    dials |= {"learning_rate": LEARNING_RATE, "training_dtype": "fp32", "lora_dtype": "fp32", "algorithm": "LoRA"}
    dials["gradient_checkpointing"] = case.saves_memory
    scale = {"upscale_method": "area", "width": case.pixels, "height": case.pixels, "crop": "disabled"}
    wires = {"model": ["base", 0], "latents": ["latents", 0], "positive": ["prompt", 0]}
    saved = node("SaveLoRA", lora=["trained", _lora_output(server)], prefix="loras/theirs")
    return {
        **loaded(),
        "small": node("ImageScale", image=["photograph", 0], **scale),
        "latents": node("VAEEncode", pixels=["small", 0], vae=["base", 2]),
        "trained": node("TrainLoraNode", **dials, **wires),
        "end": saved,
    }


def made_ready(graph: Graph) -> Graph:
    """A training's graph up to the training, whose results the server then keeps: the first shall not pay for them."""
    rest = {name: one for name, one in graph.items() if name not in ("trained", "end")}
    ends = {f"see {name}": node("PreviewAny", source=[name, 0]) for name in ("faces", "latents") if name in rest}
    return {**rest, **ends}


def measure(source: str, python: str, checkpoint: Path, kind: str, case: Case) -> Result:
    """Train a little and then more, in a fresh server."""
    graph = {"ours": ours, "theirs": theirs}[kind]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "input").mkdir()
        shutil.copy(ROOT / "examples" / "portrait.png", folder / "input")
        (folder / "models" / "checkpoints").mkdir(parents=True)
        (folder / "models" / "checkpoints" / CHECKPOINT).symlink_to(checkpoint)
        with running_comfyui(source, python, folder) as server:
            server.run(made_ready(graph(server, case, 1)))
            before = memory(server.process_id, "VmRSS")
            forget_peak(server.process_id)
            spent = [_seconds(server, graph(server, case, steps)) for steps in (1, 1 + case.steps)]
            wall, cpu = ((long - short) / case.steps for short, long in zip(*spent, strict=True))
            return Result(wall, cpu, before, memory(server.process_id, "VmHWM"))


def _lora_output(server: Server) -> int:
    # Newer releases do not give the MODEL, which was the first output.
    return int(server.nodes()["TrainLoraNode"]["output"].index("LORA_MODEL"))


def _seconds(server: Server, graph: Graph) -> tuple[float, float]:
    """Seconds of waiting and of processor time that a graph takes."""
    wall, cpu = time.perf_counter(), processor_seconds(server.process_id)
    server.run(graph)
    return time.perf_counter() - wall, processor_seconds(server.process_id) - cpu


def print_table(case: Case, run: Callable[[str], Result]) -> None:
    """Both in a row each, as soon as it is measured, and ours as a multiple of theirs."""
    lean = "activations computed again" if case.saves_memory else "activations kept"
    print(
        f"\nSD 1.5, random weights, {case.pixels} px, batch {case.batch}, rank {case.rank}, float32, CPU, "
        f"{case.steps} steps, {lean}"
    )
    print(
        f"{'':22}{'s a step, wall':>16}{'s a step, cpu':>16}{'loaded MB':>12}{'peak MB':>10}{'over loaded':>14}",
        flush=True,
    )
    results = []
    for name, kind in (("Polish Identity", "ours"), ("Train LoRA", "theirs")):
        one = run(kind)
        results.append(one)
        memory = f"{one.loaded:12.0f}{one.peak:10.0f}{one.peak - one.loaded:14.0f}"
        print(f"{name:22}{one.wall:16.2f}{one.cpu:16.2f}{memory}", flush=True)
    mine, other = results
    over = (mine.peak - mine.loaded) / (other.peak - other.loaded)
    print(
        f"{'ours over theirs':22}{mine.wall / other.wall:16.3f}{mine.cpu / other.cpu:16.3f}{'':12}"
        f"{mine.peak / other.peak:10.3f}{over:14.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Polish Identity against ComfyUI's own Train LoRA, in ComfyUI.")
    parser.add_argument("comfyui", help="a checkout of ComfyUI")
    parser.add_argument("--python", default=sys.executable, help="of its environment (default: this one)")
    parser.add_argument("--checkpoint", default="", help="one that is there, instead of a random one")
    parser.add_argument("--pixels", type=int, default=256, help="side of the picture trained on (default: 256)")
    parser.add_argument("--steps", type=int, default=4, help="that are measured, after one (default: 4)")
    parser.add_argument("--rank", type=int, default=4, help="of both (default: 4)")
    parser.add_argument("--batch", type=int, default=1, help="of both (default: 1)")
    parser.add_argument("--fast", action="store_true", help="keep activations: faster, and twice the memory")
    given: Any = parser.parse_args()
    case = Case(given.rank, given.batch, given.pixels, given.steps, not given.fast)
    with tempfile.TemporaryDirectory() as place:
        checkpoint = Path(given.checkpoint or Path(place) / CHECKPOINT).resolve()
        if not given.checkpoint:
            # In a process of its own, which gives back the 6 GB that this takes.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                pool.apply(write_checkpoint, (checkpoint,))
        print_table(case, lambda kind: measure(given.comfyui, given.python, checkpoint, kind, case))


if __name__ == "__main__":
    main()
