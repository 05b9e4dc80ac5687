"""The real Forge on the CPU: run where HYPERDREAM_FORGE_ROOT names an install, with 8 GB of memory and 3 GB of disk.

Its Python is ROOT/venv/bin/python, or the one that HYPERDREAM_FORGE_PYTHON names. All data go to a temporary folder.
Forge knows a family by its shapes, so that the checkpoint has those of Stable Diffusion 1.5, with random weights;
HYPERDREAM_FORGE_CHECKPOINT names another, or the same from an earlier run.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.webui_server import Server, place_extension, running_webui

from .make_predictor import main as make_predictor
from .real_host import InTheRealHost, install_of, without

INSTALL = install_of("forge")
CHECKPOINT = "true.safetensors"

pytestmark = without("forge")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with this extension, a checkpoint and a predictor."""
    from benchmarks.comfyui_polish import write_checkpoint

    folder = tmp_path_factory.mktemp("forge")
    checkpoints, predictors = folder / "models" / "Stable-diffusion", folder / "models" / "hyperdream" / "predictors"
    checkpoints.mkdir(parents=True)
    predictors.mkdir(parents=True)
    place_extension(folder)
    make_predictor(str(predictors / "random.safetensors"), "true")
    given = os.environ.get("HYPERDREAM_FORGE_CHECKPOINT")
    if given:
        (checkpoints / CHECKPOINT).symlink_to(given)
    else:
        # In a process of its own, which gives back the 6 GB that this takes.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            pool.apply(write_checkpoint, (checkpoints / CHECKPOINT,))
    return folder


@pytest.fixture(scope="module")
def server(data: Path) -> Iterator[Server]:
    with running_webui(INSTALL, data, data / "models" / "Stable-diffusion" / CHECKPOINT) as running:
        yield running


class TestForge(InTheRealHost):
    install, checkpoint = INSTALL, CHECKPOINT
    leaves_out_the_negative_prompt = True
