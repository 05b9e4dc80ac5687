"""Seconds and memory of polishing in the real Automatic1111 or Forge, on SD 1.5's shape with random weights.

The identity is made by polishing alone, from one picture, over the extension's own API.

- `s a step`: between a short and a longer polish, so that loading and encoding do not count. `wall` is waiting, `cpu`
  is the processor time of the server's process, which other work on the machine does not change.
- `peak MB`: of the server's process while it polishes; `loaded MB`: after a picture was drawn with the checkpoint.

Needs Linux, an install, and 8 GB of memory for it; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import base64
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hyperdream_core.bundled import bundled_examples

from .comfyui_polish import write_checkpoint
from .processes import ROOT, forget_peak, memory, processor_seconds
from .webui_server import Install, Server, place_extension, running_webui

CHECKPOINT = "true.safetensors"


def prepare(install: Install, data: Path, given: str) -> Path:
    """A data folder with this extension and a checkpoint; its path."""
    place_extension(data)
    folder = data / "models" / "Stable-diffusion"
    folder.mkdir(parents=True)
    if given:
        # With the configuration and tokenizer beside it, where the host needs them.
        source = Path(given).resolve()
        for path in source.parent.glob(f"{source.stem}.*"):
            (folder / f"true{path.suffix}").symlink_to(path)
    elif install.kind == "a1111":
        maker = [install.python, "tests/webui/make_checkpoint.py", str(install.root), str(folder), "true"]
        subprocess.run(maker, check=True, cwd=ROOT, capture_output=True)
    else:
        # In a process of its own, which gives back the 6 GB that this takes.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            pool.apply(write_checkpoint, (folder / CHECKPOINT,))
    return folder / CHECKPOINT


def polish(server: Server, steps: int, pixels: int, batch: int) -> tuple[float, float]:
    """Seconds of waiting and of processor time."""
    picture = base64.b64encode((bundled_examples() / "portrait.png").read_bytes()).decode()
    order: dict[str, Any] = {"images": [picture], "detector": "already-cropped", "predict": False, "prompts": ""}
    wall, cpu = time.perf_counter(), processor_seconds(server.process_id)
    server.post("/hyperdream/v1/create", **order, name=f"of-{steps}", steps=steps, size=pixels, batch=batch)
    return time.perf_counter() - wall, processor_seconds(server.process_id) - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description="Polishing in Automatic1111 or Forge.")
    parser.add_argument("kind", choices=["a1111", "forge"])
    parser.add_argument("root", help="of the install")
    parser.add_argument("--python", default=sys.executable, help="of its environment (default: this one)")
    parser.add_argument("--checkpoint", default="", help="one that is there, instead of a random one")
    parser.add_argument("--pixels", type=int, default=256, help="side of the picture trained on (default: 256)")
    parser.add_argument("--steps", type=int, default=4, help="that are measured, after one (default: 4)")
    parser.add_argument("--batch", type=int, default=1, help="noise draws in a step (default: 1)")
    given: Any = parser.parse_args()
    install = Install(given.kind, Path(given.root), given.python)
    with tempfile.TemporaryDirectory() as place:
        data = Path(place)
        checkpoint = prepare(install, data, given.checkpoint)
        with running_webui(install, data, checkpoint) as server:
            server.picture("a face", steps=1)
            loaded = memory(server.process_id, "VmRSS")
            forget_peak(server.process_id)
            short, long = (polish(server, steps, given.pixels, given.batch) for steps in (1, 1 + given.steps))
            wall, cpu = ((more - less) / given.steps for less, more in zip(short, long, strict=True))
            peak = memory(server.process_id, "VmHWM")
    print(f"\n{given.kind}, SD 1.5, random weights, {given.pixels} px, batch {given.batch}, CPU, {given.steps} steps")
    titles = ("s a step, wall", "s a step, cpu", "1 step, wall", "loaded MB", "peak MB", "over loaded")
    print("".join(f"{title:>16}" for title in titles))
    print(f"{wall:16.2f}{cpu:16.2f}{short[0]:16.1f}{loaded:16.0f}{peak:16.0f}{peak - loaded:16.0f}")


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
