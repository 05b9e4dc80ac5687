"""The real ComfyUI, started from its source on the CPU: run where COMFYUI_PATH names a checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest
import torch

from benchmarks.comfyui_server import Graph, Server, node, running_comfyui
from benchmarks.random_bases import whole_base
from hyperdream_core.bases import get_base
from hyperdream_core.pipelines.diffusers.single_file_export import write_single_file

from .conftest import ROOT
from .templates import template_graph
from .test_schemas import IDS

COMFYUI = os.environ.get("COMFYUI_PATH", "")
PYTHON = os.environ.get("HYPERDREAM_COMFYUI_PYTHON", sys.executable)
"""of the environment that ComfyUI's requirements are installed in"""

# What ComfyUI's requirements and ours do not install. It may be there all the same, and must not be needed.
NOT_REQUIRED = ("diffusers", "accelerate", "peft")

pytestmark = pytest.mark.skipif(not COMFYUI, reason="COMFYUI_PATH names no checkout of ComfyUI")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("comfyui")
    (folder / "input").mkdir()
    shutil.copy(ROOT / "examples" / "portrait.png", folder / "input")
    with running_comfyui(COMFYUI, PYTHON, folder, NOT_REQUIRED) as running:
        yield running


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


def identities(server: Server) -> set[str]:
    return {path.stem for path in (server.folder / "output" / "hyperdream").glob("*.safetensors")}


def test_all_nodes_are_there_with_their_schemas(server: Server) -> None:
    known = server.nodes()
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
    # On a busy machine the first step may take its time, and before it there is nothing to keep.
    kept = next((name for seconds in (10, 20, 40, 80) for name in kept_after(server, seconds)), None)
    assert kept is not None
    assert np.array_equal(base_picture(server), before)


def kept_after(server: Server, seconds: float) -> set[str]:
    """Names of what a polishing leaves that is stopped after so many seconds."""
    earlier = identities(server)
    prompt = server.start(polishing(2000))
    while not json.loads(server.get("/queue"))["queue_running"]:
        time.sleep(0.1)
    time.sleep(seconds)
    pressed = time.monotonic()
    server.post("/interrupt", {})
    history = server.finish(prompt)
    print(f"stopped after {time.monotonic() - pressed:.2f} s")
    assert history["status"]["messages"][-1][0] == "execution_interrupted"
    return {name for name in identities(server) - earlier if name.startswith("stopped-")}


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
    assert "sofia.safetensors" in choices and "evil.safetensors" not in choices
    assert "left out of the list: evil.safetensors: " in (server.folder / "log.txt").read_text(errors="replace")
    with pytest.raises(HTTPError) as refused:
        server.start({"load": node("HyperDreamLoadIdentity", identity="evil.safetensors"), "export": node(
            "HyperDreamExportLora", identity=["load", 0], name="x")})  # fmt: skip
    assert "evil.safetensors: " in refused.value.read().decode()
    history = server.finish(server.start(personal(save=node("HyperDreamSaveIdentity", name="../sofia", **save))))
    kind, facts = history["status"]["messages"][-1]
    assert kind == "execution_error" and facts["node_id"] == "save"
    assert facts["exception_message"].startswith("'../sofia' cannot be a name")
    with pytest.raises(HTTPError):
        server.start({"load": node("HyperDreamLoadIdentity", identity="../../x.safetensors"), "export": node(
            "HyperDreamExportLora", identity=["load", 0], name="x")})  # fmt: skip


def ends(graph: Graph) -> set[str]:
    """Ids of the nodes that show or save something."""
    kinds = {"PreviewImage", "SaveImage", "HyperDreamSaveIdentity", "HyperDreamExportLora", "HyperDreamMeasureLikeness"}
    return {name for name, one in graph.items() if one["class_type"] in kinds}


def run_template(server: Server, graph: Graph) -> dict[str, Any]:
    """The outputs of a template by node, all of whose ends were reached."""
    outputs, cached = server.run_and_cached(graph)
    # Before 0.28, what was cached is no output.
    assert ends(graph) <= set(outputs) | cached, "not all of the template was run"
    return outputs


def test_template_1_quickstart_and_template_4_which_loads_what_it_saved(server: Server) -> None:
    quick = template_graph(1, server.nodes())
    outputs = run_template(server, quick)
    assert outputs["15"]["hyperdream_saved"] == ["portrait.safetensors"]
    drawn = server.shown(outputs["14"])
    assert drawn.std() > 20
    blend = template_graph(4, server.nodes())
    blended = run_template(server, blend)
    assert blended["14"]["hyperdream_saved"] == ["blend.safetensors"]
    assert {"portrait", "blend"} <= identities(server)
    # Somebody between a person and herself is herself: with the quickstart's prompt, the quickstart's picture.
    blend["8"]["inputs"]["text"] = quick["9"]["inputs"]["text"]
    assert np.abs(server.picture(blend, "13") - drawn).mean() < 1.0


def test_template_3_polishes_and_measures(server: Server) -> None:
    outputs = run_template(server, template_graph(3, server.nodes()))
    predicted, polished = (server.shown(outputs[name]) for name in ("16", "24"))
    assert np.abs(predicted - polished).mean() > 0.5
    likeness = [float(re.match(r"likeness (\S+), by ", outputs[name]["text"][0])[1]) for name in ("17", "25")]
    assert min(likeness) > 0.0 and max(likeness) <= 1.0


def test_template_5_grows_with_strength(server: Server) -> None:
    graph = template_graph(5, server.nodes())
    outputs = run_template(server, graph)
    none, half, whole, late = (server.shown(outputs[name]) for name in ("14", "19", "24", "29"))
    assert 0 < np.abs(half - none).mean() < np.abs(whole - none).mean()
    assert np.abs(late - whole).mean() > 0
    # Strength 0 is the base itself: the same picture straight from the miniature's MODEL.
    graph["11"]["inputs"]["model"] = ["6", 0]
    assert np.array_equal(server.picture(graph, "14"), none)


def photograph_to_lora(server: Server, side: int) -> Graph:
    """Template 2 with a short training on small pictures, which the simple node leaves to the checkpoint."""
    graph = template_graph(2, server.nodes())
    wires = {name: value for name, value in graph["6"]["inputs"].items() if isinstance(value, list)}
    advanced = "HyperDreamPolishIdentityAdvanced"
    dials = {**server.defaults(advanced), "steps": 2, "batch": 1, "size": side, "preview_every": 0}
    graph["6"] = node(advanced, **dials, **wires)
    # The example portrait is drawn, and no finder of faces in photographs is asked for those.
    graph["4"]["inputs"]["detector"] = "already-cropped"
    graph["11"]["inputs"] |= {"width": side, "height": side}
    graph["12"]["inputs"]["steps"] = 2
    return graph


def check_lora(server: Server, outputs: dict[str, Any]) -> None:
    assert server.shown(outputs["14"]).std() > 0
    assert (server.folder / "output" / "loras" / "hyperdream" / "me-lora.safetensors").is_file()
    assert outputs["16"]["hyperdream_saved"][0].startswith("me")


def test_template_2_on_the_miniature(server: Server) -> None:
    graph = photograph_to_lora(server, get_base("miniature").picture_size)
    graph["2"] = node("HyperDreamLoadMiniature")
    check_lora(server, run_template(server, graph))


@pytest.mark.slow
def test_template_2_on_a_checkpoint_of_stable_diffusions_true_size(server: Server) -> None:
    memory = Path("/proc/meminfo")
    free = re.search(r"MemAvailable:\s+(\d+) kB", memory.read_text()) if memory.exists() else None
    if free is None or int(free[1]) < 9e6:
        pytest.skip("needs 9 GB of memory")
    graph = photograph_to_lora(server, 64)
    path = server.folder / "models" / "checkpoints" / graph["2"]["inputs"]["ckpt_name"]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_single_file(path, whole_base(get_base("sd15"), "cpu", torch.float16), torch.float16)
    (server.folder / "output" / "loras" / "hyperdream" / "me-lora.safetensors").unlink(missing_ok=True)
    check_lora(server, run_template(server, graph))
