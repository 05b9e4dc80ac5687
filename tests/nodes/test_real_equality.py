"""What must come out equal in the real ComfyUI: run where COMFYUI_PATH names a checkout."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.comfyui_server import Graph, Server, node, running_comfyui
from hyperdream_core.bundled import bundled_weights
from hyperdream_core.cli import main
from hyperdream_core.formats.identity_file import read_identity, write_identity
from hyperdream_core.pipelines.diffusers.loading import load_base

from .conftest import ROOT
from .test_real_comfyui import COMFYUI, NOT_REQUIRED, PYTHON, applied, base_picture, drawing, personal

pytestmark = pytest.mark.skipif(not COMFYUI, reason="COMFYUI_PATH names no checkout of ComfyUI")

STEPS = 6
PORTRAIT = ROOT / "examples" / "portrait.png"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("comfyui")
    (folder / "input").mkdir()
    shutil.copy(PORTRAIT, folder / "input")
    with running_comfyui(COMFYUI, PYTHON, folder, NOT_REQUIRED) as running:
        yield running


def sampled_as_ddim(graph: Graph) -> Graph:
    """The same drawing over the command line's noise levels: Euler's step in them is DDIM's."""
    base = load_base(bundled_weights() / "miniature" / "base")
    levels = base.noise.coefficients(base.noise.levels(STEPS))
    sigmas = [*(levels.spread.double() / levels.signal.double()).tolist(), 0.0]
    old = graph["drawn"]["inputs"]
    wires = {name: old[name] for name in ("model", "positive", "negative", "latent_image")}
    drawn = node(
        "SamplerCustom", **wires, add_noise=True, noise_seed=old["seed"], cfg=old["cfg"], sampler=["euler", 0],
        sigmas=["sigmas", 0],
    )  # fmt: skip
    levels_node = node("ManualSigmas", sigmas=", ".join(f"{sigma:.8f}" for sigma in sigmas))
    return {**graph, "drawn": drawn, "euler": node("KSamplerSelect", sampler_name="euler"), "sigmas": levels_node}


def test_the_quickstart_draws_the_command_lines_picture(server: Server, tmp_path: Path) -> None:
    options = ["--guidance", "plain", "--sampler", "ddim", "--sample-steps", STEPS, "--seed", 1, "--finetune-steps", 0]
    words = ["personalize", PORTRAIT, "--prompt", "a sks face", *options, "--name", "mara", "--out", tmp_path]
    assert main([str(word) for word in words]) == 0
    with Image.open(next(tmp_path.glob("mara-01.png"))) as image:
        command_line = np.asarray(image.convert("RGB")).astype(int)
    for mode in ("merged", "live"):
        found = server.picture(sampled_as_ddim(applied(mode=mode)))
        # ComfyUI cuts off what the command line rounds, on the way to 8 bits.
        assert np.abs(found - command_line).max() <= 6 and np.abs(found - command_line).mean() < 1.0
    assert np.abs(base_picture(server) - command_line).mean() > 1.0


def stacked(modes: tuple[str, str]) -> Graph:
    """The person at half strength, twice."""
    graph = applied(0.5, mode=modes[0])
    dials = {**graph["apply"]["inputs"], "model": ["apply", 0], "clip": ["apply", 1], "mode": modes[1]}
    graph["again"] = {**graph["apply"], "inputs": dials}
    graph["drawn"]["inputs"]["model"] = ["again", 0]
    return graph


@pytest.mark.parametrize("modes", [("merged", "merged"), ("live", "live"), ("merged", "live")])
def test_two_identities_add_up(server: Server, modes: tuple[str, str]) -> None:
    whole = server.picture(applied(mode="merged"))
    assert np.abs(server.picture(stacked(modes)) - whole).max() <= 2


def test_a_range_is_of_the_steps_it_names(server: Server) -> None:
    whole, none = server.picture(applied(mode="live")), base_picture(server)
    assert np.array_equal(server.picture(applied(mode="live", start_percent=0.0, end_percent=1.0)), whole)
    early, late = (
        server.picture(applied(mode="live", start_percent=start, end_percent=end))
        for start, end in ((0.0, 0.5), (0.5, 1.0))
    )
    assert min(np.abs(one - other).mean() for one in (early, late) for other in (whole, none)) > 0.1


def test_nothing_runs_again_without_a_change_and_a_changed_file_does(server: Server) -> None:
    save = node("HyperDreamSaveIdentity", name="kept", identity=["identity", 0], notes="", preview=["photograph", 0])
    server.run(personal(save=save))
    wires = {"model": ["base", 0], "clip": ["base", 1], "identity": ["load", 0], "strength": 1.0}
    load = node("HyperDreamLoadIdentity", identity="kept.safetensors")
    graph = drawing(["apply", 0], ["apply", 1], load=load, apply=node("HyperDreamApplyIdentity", **wires))
    first = server.picture(graph)
    _, cached = server.run_and_cached(graph)
    assert {"base", "load", "apply", "drawn"} <= cached
    path = server.folder / "output" / "hyperdream" / "kept.safetensors"
    write_identity(path, read_identity(path).scaled(0.5))
    outputs, cached = server.run_and_cached(graph)
    assert not {"load", "apply", "drawn"} & cached
    assert np.abs(server.shown(outputs["shown"]) - first).mean() > 0.1

    predicted = applied()
    server.run(predicted)
    _, cached = server.run_and_cached(predicted)
    assert {"predictor", "faces", "identity", "apply"} <= cached
    with Image.open(PORTRAIT) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(server.folder / "input" / "portrait.png")
    try:
        _, cached = server.run_and_cached(predicted)
    finally:
        shutil.copy(PORTRAIT, server.folder / "input" / "portrait.png")
    assert "predictor" in cached and not {"faces", "identity", "apply", "drawn"} & cached


def test_on_weights_of_8_bits_and_with_weights_that_stay_outside_the_gpu(tmp_path: Path) -> None:
    script = [PYTHON, str(Path(__file__).with_name("inside_comfyui.py")), COMFYUI, str(ROOT)]
    ran = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
