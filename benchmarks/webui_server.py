"""A real Automatic1111 or Forge, started from an install on the CPU and asked over HTTP; its tests run on it too."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from PIL import Image

from .processes import ROOT, free_port

_FLAGS = ["--skip-prepare-environment", "--skip-torch-cuda-test", "--api", "--no-hashing", "--no-download-sd-model"]
_CPU = {
    "a1111": ["--no-half", "--use-cpu", "all", "--disable-opt-split-attention", "--do-not-download-clip"],
    "forge": ["--always-cpu"],
}


@dataclass(frozen=True)
class Install:
    """One of the two programs.

    Args:
        kind: `a1111` or `forge`.
        root: its folder.
        python: of the environment that its requirements are installed in.
    """

    kind: str
    root: Path
    python: str


@dataclass(frozen=True)
class Server:
    """A running web UI with this extension in it."""

    url: str
    log: Path
    process_id: int

    def get(self, path: str) -> Any:
        with urlopen(self.url + path, timeout=600) as answer:
            return json.loads(answer.read())

    def post(self, path: str, **body: Any) -> Any:
        request = Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=3600) as answer:
                return json.loads(answer.read())
        except HTTPError as error:
            # The reason is in the body, which nobody would see.
            error.msg = error.read().decode(errors="replace")
            raise

    def drawn(self, prompt: str, **dials: Any) -> tuple[bytes, str]:
        """The pixels of a picture of 64 px in few steps, and its infotext."""
        facts = {"seed": 1, "width": 64, "height": 64, "steps": 3, "cfg_scale": 7, "sampler_name": "Euler"}
        answer = self.post("/sdapi/v1/txt2img", prompt=prompt, **{**facts, **dials})
        with Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))) as opened:
            return opened.convert("RGB").tobytes(), json.loads(answer["info"])["infotexts"][0]

    def picture(self, prompt: str, **dials: Any) -> bytes:
        """The pixels alone."""
        return self.drawn(prompt, **dials)[0]


def place_extension(data: Path) -> None:
    """Put this checkout into a data folder's extensions, as links to all but its history."""
    folder = data / "extensions" / "hyperdream"
    folder.mkdir(parents=True)
    for entry in ROOT.iterdir():
        if entry.name != ".git":
            (folder / entry.name).symlink_to(entry)


@contextmanager
def running_webui(install: Install, data: Path, checkpoint: Path, *more: str) -> Iterator[Server]:
    """A web UI that keeps all of its files in `data`, until the block ends.

    Args:
        install: which, and where.
        data: with extensions in it.
        checkpoint: that it loads.
        more: flags.
    """
    port = free_port()
    flags = [*_FLAGS, *_CPU[install.kind], "--port", str(port), "--data-dir", str(data), "--ckpt", str(checkpoint)]
    log = data / f"log-{port}.txt"
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    with log.open("w") as lines:
        process = subprocess.Popen(
            [install.python, "launch.py", *flags, *more],
            cwd=install.root,
            env={**os.environ, **quiet, "OMP_NUM_THREADS": "1", "PYTHONPATH": "", "COMMANDLINE_ARGS": ""},
            stdout=lines,
            stderr=subprocess.STDOUT,
        )
    server = Server(f"http://127.0.0.1:{port}", log, process.pid)
    try:
        until = time.monotonic() + 900
        while True:
            try:
                # A route of our own: the hosts' are there before they can be used.
                server.get("/hyperdream/v1/identities")
                break
            except (URLError, ConnectionError):
                assert process.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
                time.sleep(1)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            # Forge answers the signal and stays.
            process.kill()
            process.wait(20)
