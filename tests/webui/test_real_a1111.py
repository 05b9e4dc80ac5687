"""The real Automatic1111 on the CPU, with a tiny checkpoint: run where HYPERDREAM_A1111_ROOT names an install.

Its Python is ROOT/venv/bin/python, or the one that HYPERDREAM_A1111_PYTHON names. All data go to a temporary folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.processes import ROOT
from benchmarks.webui_server import Server, place_extension, running_webui

from .real_host import InTheRealHost, install_of, without

HERE = Path(__file__).parent
INSTALL = install_of("a1111")
CHECKPOINT = "tiny.safetensors"

pytestmark = without("a1111")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with this extension, a tiny checkpoint, and a family and a predictor of its size."""
    folder = tmp_path_factory.mktemp("a1111")
    checkpoints, predictors = folder / "models" / "Stable-diffusion", folder / "models" / "hyperdream" / "predictors"
    checkpoints.mkdir(parents=True)
    predictors.mkdir(parents=True)
    place_extension(folder)
    scripts = folder / "extensions" / "zz-tiny" / "scripts"
    scripts.mkdir(parents=True)
    shutil.copy(HERE / "tiny_family.py", scripts)
    makers = [
        [str(HERE / "make_checkpoint.py"), str(INSTALL.root), str(checkpoints), "tiny"],
        ["-m", "tests.webui.make_predictor", str(predictors / "tiny.safetensors"), "tiny"],
    ]
    for maker in makers:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        subprocess.run([INSTALL.python, *maker], check=True, cwd=ROOT, env=environment)
    return folder


@pytest.fixture(scope="module")
def server(data: Path) -> Iterator[Server]:
    with running_webui(INSTALL, data, data / "models" / "Stable-diffusion" / CHECKPOINT) as running:
        yield running


class TestA1111(InTheRealHost):
    install, checkpoint = INSTALL, CHECKPOINT
