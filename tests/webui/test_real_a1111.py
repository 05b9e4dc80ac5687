"""The real Automatic1111 on the CPU, with a tiny checkpoint: run where HYPERDREAM_A1111_ROOT names an install.

Its Python is ROOT/venv/bin/python, or the one that HYPERDREAM_A1111_PYTHON names. All data go to a temporary folder.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest
from PIL import Image

from hyperdream_core.data.bundled import bundled_examples

from .conftest import ROOT

HOST = Path(os.environ.get("HYPERDREAM_A1111_ROOT", ""))
PYTHON = os.environ.get("HYPERDREAM_A1111_PYTHON", str(HOST / "venv" / "bin" / "python"))

pytestmark = pytest.mark.skipif(not HOST.name, reason="HYPERDREAM_A1111_ROOT names no install of Automatic1111")

HERE = Path(__file__).parent
FLAGS = [
    "--skip-prepare-environment",
    "--skip-torch-cuda-test",
    "--api",
    "--no-half",
    "--use-cpu",
    "all",
    "--disable-opt-split-attention",
    "--no-hashing",
    "--no-download-sd-model",
]
PORTRAIT = base64.b64encode((bundled_examples() / "portrait.png").read_bytes()).decode()
ORDER = {"images": [PORTRAIT], "detector": "already-cropped", "predict": False, "batch": 2, "draw_steps": 2}


@dataclass(frozen=True)
class Server:
    """A running web UI."""

    url: str
    log: Path

    def get(self, path: str) -> Any:
        with urlopen(self.url + path, timeout=600) as answer:
            return json.loads(answer.read())

    def post(self, path: str, **body: Any) -> Any:
        request = Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urlopen(request, timeout=1200) as answer:
            return json.loads(answer.read())

    def picture(self, prompt: str) -> bytes:
        """The pixels of a picture of 64 px."""
        facts = {"seed": 1, "width": 64, "height": 64, "steps": 3, "cfg_scale": 7, "sampler_name": "Euler"}
        image = self.post("/sdapi/v1/txt2img", prompt=prompt, **facts)["images"][0]
        with Image.open(io.BytesIO(base64.b64decode(image))) as opened:
            return opened.convert("RGB").tobytes()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with this extension, a tiny checkpoint, and a family of its size."""
    folder = tmp_path_factory.mktemp("a1111")
    checkpoints, extensions = folder / "models" / "Stable-diffusion", folder / "extensions"
    checkpoints.mkdir(parents=True)
    (extensions / "zz-tiny" / "scripts").mkdir(parents=True)
    (extensions / "hyperdream").symlink_to(ROOT)
    shutil.copy(HERE / "tiny_family.py", extensions / "zz-tiny" / "scripts")
    maker = [PYTHON, str(HERE / "make_checkpoint.py"), str(HOST), str(checkpoints), "tiny"]
    subprocess.run(maker, check=True, capture_output=True)
    return folder


def started(data: Path, *more: str) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    checkpoint = data / "models" / "Stable-diffusion" / "tiny.safetensors"
    command = [PYTHON, "launch.py", *FLAGS, "--port", str(port), "--data-dir", str(data), "--ckpt", str(checkpoint)]
    log = data / f"log-{port}.txt"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COMMANDLINE_ARGS": ""}
    with log.open("w") as lines:
        process = subprocess.Popen([*command, *more], cwd=HOST, env=environment, stdout=lines, stderr=subprocess.STDOUT)
    server = Server(f"http://127.0.0.1:{port}", log)
    try:
        until = time.monotonic() + 900
        while True:
            try:
                server.get("/hyperdream/v1/identities")
                break
            except (URLError, ConnectionError):
                assert process.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
                time.sleep(1)
        yield server
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def server(data: Path) -> Iterator[Server]:
    yield from started(data)


def test_the_extension_loads_in_silence_and_shows_its_tab(server: Server) -> None:
    parts = server.get("/config")["components"]
    assert "HyperDream" in {part["props"].get("label") for part in parts if part["type"] == "tabitem"}
    log = server.log.read_text()
    assert "Traceback" not in log and "Error loading script" not in log and "Error calling" not in log


def test_an_identity_is_made_and_draws_as_its_export_and_the_base_stays(server: Server) -> None:
    base = server.picture("a face")
    made = server.post("/hyperdream/v1/create", **ORDER, name="mara", steps=4)
    assert server.picture("a face") == base
    stem = Path(made["name"]).stem
    native = server.picture(f"a face <lora:{stem}:1>")
    assert native == server.picture(f"a face <lora:{stem}-lora:1>") != base
    assert server.picture(f"a face <lora:{stem}:0.3>") not in (base, native)
    assert server.picture("a face") == base
    assert made["prompt"] == f"<lora:{stem}:1> a sks face" and made["grid"] and not made["cancelled"]


def test_after_a_picture_with_a_lora_the_base_is_polished_all_the_same(server: Server) -> None:
    first = server.post("/hyperdream/v1/create", **ORDER, name="first", steps=3, prompts="")
    server.picture(f"a face <lora:{Path(first['name']).stem}:2>")
    again = server.post("/hyperdream/v1/create", **ORDER, name="first", steps=3, prompts="")
    assert again["name"] == first["name"], "the same numbers, so the same digest"


def test_interrupt_keeps_the_best_so_far(server: Server) -> None:
    base = server.picture("a face")

    def stop() -> None:
        for _ in range(600):
            time.sleep(0.5)
            if server.get("/sdapi/v1/progress")["state"]["sampling_step"] >= 2:
                server.post("/sdapi/v1/interrupt")
                return

    stopper = threading.Thread(target=stop)
    stopper.start()
    made = server.post("/hyperdream/v1/create", **ORDER, name="stopped", steps=500)
    stopper.join()
    assert made["cancelled"] and made["grid"] is None and "stopped by you" in made["report"]
    assert server.picture("a face") == base


def test_the_librarys_verbs_reach_the_lora_page(server: Server) -> None:
    made = server.post("/hyperdream/v1/create", **ORDER, name="ana", steps=1, prompts="")["name"]
    renamed = server.post("/hyperdream/v1/rename", name=made, new_name="lea")["name"]
    known = {entry["name"] for entry in server.get("/sdapi/v1/loras")}
    assert {Path(renamed).stem, Path(renamed).stem + "-lora"} <= known and Path(made).stem not in known
    server.post("/hyperdream/v1/delete", name=renamed)
    with pytest.raises(HTTPError):
        server.post("/hyperdream/v1/delete", name=renamed)


def test_it_works_without_a_page(data: Path) -> None:
    for server in started(data, "--nowebui"):
        assert "identities" in server.get("/hyperdream/v1/identities")
        assert "Traceback" not in server.log.read_text()
