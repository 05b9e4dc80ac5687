"""A real ComfyUI, started from its source on the CPU and asked over HTTP; the tests of the nodes run on it too."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image

from .processes import ROOT, free_port

Graph = dict[str, dict[str, Any]]
"""What a server is sent: nodes by id, each with its class and its inputs, which are values or [id, output]."""


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """One node of a graph."""
    return {"class_type": kind, "inputs": inputs}


@dataclass(frozen=True)
class Server:
    """A running ComfyUI with this pack in it."""

    url: str
    folder: Path
    process_id: int

    def get(self, path: str) -> Any:
        with urlopen(self.url + path, timeout=300) as answer:
            return answer.read()

    def post(self, path: str, value: Any) -> Any:
        request = Request(self.url + path, json.dumps(value).encode(), {"Content-Type": "application/json"})
        with urlopen(request, timeout=300) as answer:
            return json.loads(answer.read() or b"{}")

    def nodes(self) -> dict[str, Any]:
        """What the server says of its nodes."""
        known: dict[str, Any] = json.loads(self.get("/object_info"))
        return known

    def defaults(self, kind: str) -> dict[str, Any]:
        """A node's dials at their defaults."""
        facts = json.loads(self.get(f"/object_info/{kind}"))[kind]["input"]
        every = {**facts["required"], **facts.get("optional", {})}
        return {name: more[0]["default"] for name, (_, *more) in every.items() if more and "default" in more[0]}

    def start(self, graph: Graph) -> str:
        """Queue a graph; its prompt's id."""
        return str(self.post("/prompt", {"prompt": graph})["prompt_id"])

    def finish(self, prompt: str, seconds: float = 1200) -> Any:
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
        return self.run_and_cached(graph)[0]

    def run_and_cached(self, graph: Graph) -> tuple[dict[str, Any], set[str]]:
        """The outputs of a graph, which must succeed, and the ids of the nodes that did not have to run."""
        history = self.finish(self.start(graph))
        messages = history["status"]["messages"]
        kind, facts = messages[-1]
        told = "".join([*facts.get("traceback", []), str(facts.get("exception_message", kind))])
        assert history["status"]["status_str"] == "success", told
        cached = {name for kind, facts in messages if kind == "execution_cached" for name in facts["nodes"]}
        return history["outputs"], cached

    def picture(self, graph: Graph, name: str = "shown") -> np.ndarray:
        """The first picture of a preview node, 8 bit (h, w, 3)."""
        return self.shown(self.run(graph)[name])

    def shown(self, output: dict[str, Any]) -> np.ndarray:
        """The first picture in a node's output, 8 bit (h, w, 3)."""
        place = urlencode({key: output["images"][0][key] for key in ("filename", "subfolder", "type")})
        with Image.open(BytesIO(self.get(f"/view?{place}"))) as image:
            return np.asarray(image.convert("RGB")).astype(int)


@contextmanager
def running_comfyui(source: str, python: str, folder: Path, hidden: Sequence[str] = ()) -> Iterator[Server]:
    """A ComfyUI that keeps all of its files in `folder`, until the block ends.

    Args:
        source: its checkout.
        python: of the environment that its requirements are installed in.
        folder: an empty one.
        hidden: packages that it shall not find, installed or not.
    """
    (folder / "custom_nodes").mkdir()
    (folder / "custom_nodes" / "hyperdream").symlink_to(ROOT)
    # What is None there counts as not installed.
    hide = f"import runpy, sys; sys.modules.update(dict.fromkeys({list(hidden)}))"
    port = free_port()
    flags = ["--cpu", "--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(folder)]
    flags += ["--disable-auto-launch", "--disable-api-nodes", "--preview-method", "auto"]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [python, "-c", f"{hide}; runpy.run_path('main.py', run_name='__main__')", *flags],
            cwd=source,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            running = Server(f"http://127.0.0.1:{port}", folder, process.pid)
            for _ in range(1200):
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
