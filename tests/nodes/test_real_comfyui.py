"""The real ComfyUI, started from its source on the CPU: run where HYPERDREAM_COMFYUI_ROOT names a checkout."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

from .conftest import ROOT
from .test_schemas import IDS

COMFYUI = os.environ.get("HYPERDREAM_COMFYUI_ROOT", "")
PYTHON = os.environ.get("HYPERDREAM_COMFYUI_PYTHON", sys.executable)
"""of the environment that ComfyUI's requirements are installed in"""

pytestmark = pytest.mark.skipif(not COMFYUI, reason="HYPERDREAM_COMFYUI_ROOT names no checkout of ComfyUI")

Graph = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Server:
    """A running ComfyUI."""

    url: str
    folder: Path

    def get(self, path: str) -> Any:
        with urlopen(self.url + path, timeout=300) as answer:
            return answer.read()

    def post(self, path: str, value: Any) -> Any:
        request = Request(self.url + path, json.dumps(value).encode(), {"Content-Type": "application/json"})
        with urlopen(request, timeout=300) as answer:
            return json.loads(answer.read() or b"{}")

    def start(self, graph: Graph) -> str:
        """Queue a graph; its prompt's id."""
        return str(self.post("/prompt", {"prompt": graph})["prompt_id"])

    def finish(self, prompt: str, seconds: float = 600) -> Any:
        """The history of a prompt once it has ended."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            history = json.loads(self.get(f"/history/{prompt}"))
            if prompt in history:
                return history[prompt]
            time.sleep(0.2)
        raise TimeoutError(prompt)

    def run(self, graph: Graph) -> dict[str, Any]:
        """The outputs of a graph, which must succeed."""
        history = self.finish(self.start(graph))
        assert history["status"]["status_str"] == "success", history["status"]["messages"][-1]
        outputs: dict[str, Any] = history["outputs"]
        return outputs

    def picture(self, graph: Graph, node: str = "shown") -> np.ndarray:
        """The first picture of a preview node, 8 bit (h, w, 3)."""
        facts = self.run(graph)[node]["images"][0]
        place = urlencode({key: facts[key] for key in ("filename", "subfolder", "type")})
        with Image.open(BytesIO(self.get(f"/view?{place}"))) as image:
            return np.asarray(image.convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("comfyui")
    (folder / "custom_nodes").mkdir()
    (folder / "custom_nodes" / "hyperdream").symlink_to(ROOT)
    (folder / "input").mkdir()
    shutil.copy(ROOT / "examples" / "portrait.png", folder / "input")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--cpu", "--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(folder)]
    flags += ["--disable-auto-launch", "--disable-api-nodes", "--preview-method", "auto"]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [PYTHON, "main.py", *flags],
            cwd=COMFYUI,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            running = Server(f"http://127.0.0.1:{port}", folder)
            for _ in range(600):
                try:
                    running.get("/system_stats")
                    break
                except (URLError, OSError):
                    assert process.poll() is None, (folder / "log.txt").read_text()[-3000:]
                    time.sleep(0.5)
            yield running
        finally:
            process.terminate()
            process.wait(30)


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


_drawings = count()


def drawing(model: Any, clip: Any, steps: int = 4, **more: Any) -> Graph:
    """A picture of the miniature, drawn by core's nodes from this MODEL and CLIP."""
    # Spaces at the end mean nothing to CLIP, but make ComfyUI draw again instead of answering from its cache.
    prompt = "a sks face" + " " * next(_drawings)
    sampler = {"seed": 1, "steps": steps, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    ends = {"positive": ["prompt", 0], "negative": ["nothing", 0], "latent_image": ["empty", 0]}
    return {
        "base": node("HyperDreamLoadMiniature"),
        "prompt": node("CLIPTextEncode", text=prompt, clip=clip),
        "nothing": node("CLIPTextEncode", text="", clip=["base", 1]),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "drawn": node("KSampler", model=model, **ends, **sampler),
        "picture": node("VAEDecode", samples=["drawn", 0], vae=["base", 2]),
        "shown": node("PreviewImage", images=["picture", 0]),
        **more,
    }


def personal(**more: Any) -> Graph:
    """From the example portrait to an identity."""
    settings = {"detector": "already-cropped", "order": "size", "index": 0, "on_no_face": "stop"}
    return {
        "photograph": node("LoadImage", image="portrait.png"),
        "predictor": node("HyperDreamLoadPredictor", predictor="miniature (built in)"),
        "faces": node("HyperDreamPrepareFace", image=["photograph", 0], **settings),
        "identity": node("HyperDreamPredictIdentity", predictor=["predictor", 0], faces=["faces", 0]),
        **more,
    }


def applied(strength: float = 1.0, mode: str = "", **dials: Any) -> Graph:
    """The quickstart: the person drawn by the miniature."""
    wires = {"model": ["base", 0], "clip": ["base", 1], "identity": ["identity", 0], "strength": strength}
    apply = node("HyperDreamApplyIdentity", **wires)
    if mode:
        ones = {"start_percent": 0.0, "end_percent": 1.0, "down": 1.0, "middle": 1.0, "up": 1.0, "text": 1.0}
        apply = node("HyperDreamApplyIdentityAdvanced", **wires, mode=mode, **(ones | dials))
    return drawing(["apply", 0], ["apply", 1], **personal(apply=apply))


def base_picture(server: Server) -> np.ndarray:
    return server.picture(drawing(["base", 0], ["base", 1]))


def polishing(steps: int, **more: Any) -> Graph:
    wires = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2], "faces": ["faces", 0]}
    polish = node("HyperDreamPolishIdentity", **wires, identity=["identity", 0], steps=steps, caption="", seed=7)
    curve = node("PreviewImage", images=["polish", 1])
    return personal(base=node("HyperDreamLoadMiniature"), polish=polish, curve=curve, **more)


def test_all_nodes_are_there_with_their_schemas(server: Server) -> None:
    known = json.loads(server.get("/object_info"))
    assert set(IDS) <= set(known)
    assert known["HyperDreamExportLora"]["output"] == ["LORA_MODEL", "STRING"]
    assert known["HyperDreamPrepareFace"]["input"]["optional"]["landmarks"][0] == "FACE_LANDMARKS"


def test_the_quickstart_merged_equals_live_and_the_next_prompt_is_the_base(server: Server) -> None:
    before = base_picture(server)
    quick = server.picture(applied())
    assert np.abs(quick - before).mean() > 1.0
    merged, live = (server.picture(applied(mode=mode)) for mode in ("merged", "live"))
    assert np.array_equal(merged, quick)
    assert np.abs(merged - live).max() <= 1
    for strength_zero in (applied(0.0), applied(0.0, mode="live")):
        assert np.array_equal(server.picture(strength_zero), before)
    assert np.array_equal(base_picture(server), before)


def test_polishing_improves_repeats_and_leaves_the_base_alone(server: Server) -> None:
    before = base_picture(server)
    wires = {"model": ["base", 0], "clip": ["base", 1], "identity": ["polish", 0], "strength": 1.0}
    graph = drawing(["apply", 0], ["apply", 1], **polishing(3, apply=node("HyperDreamApplyIdentity", **wires)))
    polished = server.picture(graph)
    assert np.abs(polished - server.picture(applied())).mean() > 0.1
    server.post("/free", {"unload_models": True, "free_memory": True})
    assert np.abs(server.picture(graph) - polished).max() <= 1
    assert np.array_equal(base_picture(server), before)


def test_stop_keeps_the_best_and_the_next_prompt_is_normal(server: Server) -> None:
    before = base_picture(server)
    prompt = server.start(polishing(2000))
    kept = server.folder / "output" / "hyperdream"
    for _ in range(900):
        state = json.loads(server.get("/queue"))
        if state["queue_running"]:
            break
        time.sleep(0.1)
    time.sleep(float(os.environ.get("HYPERDREAM_STOP_AFTER", "10")))
    pressed = time.monotonic()
    server.post("/interrupt", {})
    history = server.finish(prompt)
    print(f"stopped after {time.monotonic() - pressed:.2f} s")
    assert history["status"]["messages"][-1][0] == "execution_interrupted"
    assert [path.name for path in kept.glob("stopped-*.safetensors")]
    assert np.array_equal(base_picture(server), before)


def test_an_export_draws_the_same_through_the_stock_loader(server: Server) -> None:
    export = node("HyperDreamExportLora", identity=["identity", 0], name="quick")
    server.run(personal(export=export))
    wires = {"strength_model": 1.0, "strength_clip": 1.0, "lora_name": os.path.join("hyperdream", "quick.safetensors")}
    lora = node("LoraLoader", model=["base", 0], clip=["base", 1], **wires)
    stock = server.picture(drawing(["lora", 0], ["lora", 1], lora=lora))
    # The file holds 16 bit numbers.
    assert np.abs(stock - server.picture(applied())).mean() < 1.0
    assert np.abs(stock - base_picture(server)).mean() > 1.0
    assert "lora key not loaded" not in (server.folder / "log.txt").read_text()


def test_a_saved_identity_is_offered_and_a_wrong_name_is_one_message(server: Server) -> None:
    save = {"identity": ["identity", 0], "notes": "", "preview": ["photograph", 0]}
    server.run(personal(save=node("HyperDreamSaveIdentity", name="sofia", **save)))
    (server.folder / "models" / "hyperdream").mkdir(parents=True, exist_ok=True)
    (server.folder / "models" / "hyperdream" / "evil.safetensors").write_bytes(b"\xff" * 64)
    known = json.loads(server.get("/object_info/HyperDreamLoadIdentity"))
    choices = json.dumps(known["HyperDreamLoadIdentity"]["input"]["required"]["identity"])
    assert "sofia.safetensors" in choices and "evil.safetensors" in choices
    history = server.finish(server.start(personal(save=node("HyperDreamSaveIdentity", name="../sofia", **save))))
    kind, facts = history["status"]["messages"][-1]
    assert kind == "execution_error" and facts["node_id"] == "save"
    assert facts["exception_message"].startswith("the name '../sofia' leads to another folder")
    with pytest.raises(HTTPError):
        server.start({"load": node("HyperDreamLoadIdentity", identity="../../x.safetensors"), "export": node(
            "HyperDreamExportLora", identity=["load", 0], name="x")})  # fmt: skip
