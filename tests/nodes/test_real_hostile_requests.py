"""The hostile requests to the library's routes once more, sent to a real ComfyUI behind its own middlewares."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from benchmarks.comfyui_server import Server, running_comfyui
from tests.pipelines.test_library import put, stored  # noqa: F401

from .test_hostile_requests import BROKEN, PREFIX, contents, requests

COMFYUI = os.environ.get("COMFYUI_PATH", "")
PYTHON = os.environ.get("HYPERDREAM_COMFYUI_PYTHON", sys.executable)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not COMFYUI, reason="COMFYUI_PATH names no checkout of ComfyUI"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_comfyui(COMFYUI, PYTHON, tmp_path_factory.mktemp("comfyui")) as running:
        yield running


def answered(server: Server, method: str, path: str, headers: dict[str, str], body: bytes) -> HTTPResponse:
    connection = HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    connection.putrequest(method, path)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body or None)
    answer = connection.getresponse()
    answer.told = answer.read()  # type: ignore[attr-defined]
    connection.close()
    return answer


def test_a_real_server_refuses_them_and_nothing_changes(server: Server, stored: bytes) -> None:  # noqa: F811
    folder = server.folder / "models" / "hyperdream"
    put(folder, "mara", stored, picture=True)
    put(folder, "occupied", stored)
    before, sent, wrong = contents(folder), 0, []
    for method, path, headers, body in requests():
        for prefix in (PREFIX, "/api" + PREFIX):
            sent += 1
            answer = answered(server, method, prefix + path, headers, body)
            # ComfyUI's own guard fails on an origin that is no address, before anybody's route.
            refused = 400 <= answer.status < 500 or (headers.get("Origin") == "http://[::1" and answer.status == 500)
            if not refused or contents(folder) != before:
                wrong.append((method, prefix + path, headers, body[:80], answer.status))
    assert not wrong, f"{len(wrong)} of {sent}: {wrong[:5]}"
    assert answered(server, "GET", PREFIX, {}, b"").status == 200
    print(f"{sent} requests, none of which changes anything, or comes to an error in a route of ours")


@pytest.mark.parametrize("sent", BROKEN)
def test_a_real_server_deletes_nobody_for_a_body_that_breaks_off(
    server: Server,
    stored: bytes,  # noqa: F811
    sent: bytes,
) -> None:
    path = put(server.folder / "models" / "hyperdream", "lena", stored)
    place = urlsplit(server.url)
    with socket.create_connection((place.hostname, place.port), timeout=20) as line:
        start = f"POST {PREFIX}/delete HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        line.sendall(start.encode() + sent.replace(b"mara", b"lena"))
        line.shutdown(socket.SHUT_WR)
        answer = line.recv(200)
    assert b" 200 " not in answer and b" 500 " not in answer, answer
    assert Path(path).read_bytes() == stored


def test_no_route_of_ours_has_failed_meanwhile(server: Server) -> None:
    time.sleep(2)
    assert "library_routes.py" not in (server.folder / "log.txt").read_text(errors="replace")
