"""Hostile requests to the library's routes: each is refused in one sentence, and nothing in the folder changes."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from tests.nodes.pack import load_pack_module
from tests.nodes.test_library_routes import JSON, talk
from tests.pipelines.test_library import put, stored  # noqa: F401

PREFIX = "/hyperdream/library"
MARA = "mara.safetensors"
VALID = {
    "rename": {"name": MARA, "new_name": "stolen"},
    "delete": {"name": MARA},
    "annotate": {"name": MARA, "notes": "defaced", "strength": 0.1},
}
"""what would be done if it came from the host's own page"""

FOREIGN_HEADERS: list[dict[str, str]] = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "chrome-extension://abcdef"},
    {"Origin": "http://127.0.0.1.evil.example"},
    {"Origin": "http://[::1"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Origin": "https://evil.example"},
]
FOREIGN_TYPES: list[dict[str, str]] = [
    {"Content-Type": ""},
    {"Content-Type": "text/plain"},
    {"Content-Type": "text/plain;application/json"},
    {"Content-Type": "application/x-www-form-urlencoded"},
    {"Content-Type": "multipart/form-data; boundary=x"},
    {"Content-Type": "application/octet-stream"},
    {"Content-Type": "text/json"},
]
BODIES: list[bytes] = [
    b"", b"{", b"}", b"null", b"true", b"3", b'"mara.safetensors"', b"[]", b'[{"name": "mara.safetensors"}]', b"{}",
    b"\x00" * 64, b"\xff\xfe{\x00}\x00", b"[" * 200_000, b'{"name":' * 200_000, b" " * 2_000_000,
    b'{"name": NaN, "new_name": "x"}', b'{"name": ' + b"7" * 6000 + b"}", b'{"name": null}', b'{"name": 5}',
    b'{"name": {"name": "mara.safetensors"}}', b'{"name": ["mara.safetensors"]}', b'{"name": ""}', b'{"name": "."}',
    b'{"name": ".."}', b'{"name": "/"}', b'{"name": "../identities/mara.safetensors"}',
    b'{"name": "./mara.safetensors"}', b'{"name": "mara.safetensors\\u0000"}', b'{"name": "mara.safetensors/"}',
    b'{"name": "MARA.safetensors"}', b'{"name": "\\ud800"}', b'{"name": "mara.png"}', b'{"name": "%6dara.safetensors"}',
    b"name=mara.safetensors",
]  # fmt: skip
NEW_NAMES: list[Any] = [
    None, 5, [], {}, "", " ", ".", "..", "../up", "/tmp/up", "a/b", "a\\b", "C:up", "con", "nul.txt", ".hidden",
    "a\x00b", "a\nb", "x" * 300, "\U0001f600" * 80, "\ud800", "\u202e", "a*", "a?", "occupied",
]  # fmt: skip
REMARKS: list[dict[str, Any]] = [
    {"strength": "1"}, {"strength": True}, {"strength": []}, {"strength": 10**400}, {"strength": 1e300},
    {"strength": -2.01}, {"notes": None}, {"notes": 5}, {"notes": ["x"]}, {"notes": "x" * 2001},
    {"notes": "x" * 900_000}, {"notes": "\udfff"},
]  # fmt: skip
QUERIES = ["", "?name=", "?name=..", "?name=../mara.png", "?name=mara.png", "?name=%00", "?name=%FF", "?name=mara",
           "?name=/etc/passwd", "?name=" + "x" * 3000, "?nom=mara.safetensors"]  # fmt: skip


BROKEN: list[bytes] = [
    b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n{}\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
    b'Content-Length: 400\r\n\r\n{"name": "mara.safetensors"}',
    b"Content-Encoding: deflate\r\nContent-Length: 14\r\n\r\nno such thing ",
    b"Content-Length: -1\r\n\r\n",
    b"Content-Length: 99999999999999\r\n\r\n" + b" " * 70_000,
]
"""what follows the headers of a request to delete somebody"""


def requests() -> Iterator[tuple[str, str, dict[str, str], bytes]]:
    """(method, path, headers, body)"""
    for action, wish in VALID.items():
        body = json.dumps(wish).encode()
        for headers in FOREIGN_HEADERS:
            yield "POST", f"/{action}", {**JSON, **headers}, body
        for headers in FOREIGN_TYPES:
            yield "POST", f"/{action}", headers, body
        yield "POST", f"/{action}", {**JSON, "Content-Encoding": "gzip"}, gzip.compress(body)
        yield from (("POST", f"/{action}", JSON, one) for one in BODIES)
        yield from ((method, f"/{action}", JSON, body) for method in ("GET", "PUT", "DELETE", "PATCH", "HEAD"))
    for name in NEW_NAMES:
        yield "POST", "/rename", JSON, json.dumps({"name": MARA, "new_name": name}).encode()
    for remark in REMARKS:
        yield "POST", "/annotate", JSON, json.dumps({"name": MARA, **remark}).encode()
    for query in QUERIES:
        yield "GET", "/preview" + query, {}, b""
    for headers in FOREIGN_HEADERS:
        yield "GET", "", headers, b""
        yield "GET", f"/preview?name={MARA}", headers, b""
    yield from ((method, "", JSON, b"{}") for method in ("POST", "PUT", "DELETE"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_hostile_requests_are_refused_in_one_sentence_and_change_nothing(
    tmp_path: Path,
    stored: bytes,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    put(tmp_path, "mara", stored, picture=True)
    put(tmp_path, "occupied", stored)
    before, every = contents(tmp_path), list(requests())
    assert len(every) >= 200

    async def conversation(client: Any) -> None:
        for method, path, headers, body in every:
            # The client packs nothing itself, and names no type where none is to be sent.
            options = {"skip_auto_headers": ("Content-Type",)} if not headers.get("Content-Type", "") else {}
            sent = {name: value for name, value in headers.items() if value}
            answer = await client.request(
                method, PREFIX + path, data=BytesIO(body) if body else None, headers=sent, **options
            )
            told = await answer.text()
            assert 400 <= answer.status < 500, (method, path, headers, body[:80], answer.status, told)
            if method == "POST" and answer.status != 405:
                sentence = json.loads(told)["error"]
                assert sentence and len(sentence) < 700 and "Traceback" not in sentence, sentence

    with caplog.at_level(logging.ERROR):
        talk(tmp_path, conversation)
    assert not [record for record in caplog.records if record.exc_info], caplog.text
    assert contents(tmp_path) == before


@pytest.mark.parametrize("sent", BROKEN)
def test_a_body_that_breaks_off_or_lies_about_its_length_deletes_nobody(
    tmp_path: Path,
    stored: bytes,  # noqa: F811
    sent: bytes,
) -> None:
    path = put(tmp_path, "mara", stored)

    async def conversation(client: Any) -> None:
        reader, writer = await asyncio.open_connection(client.host, client.port)
        start = f"POST {PREFIX}/delete HTTP/1.1\r\nHost: {client.host}:{client.port}\r\n"
        writer.write(start.encode() + b"Content-Type: application/json\r\n" + sent)
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(200), 5)
        writer.close()
        assert b" 200 " not in answer and b" 500 " not in answer, answer
        assert (await client.get(PREFIX)).status == 200

    talk(tmp_path, conversation)
    assert path.read_bytes() == stored


def test_who_hangs_up_in_the_middle_of_a_body_is_no_error_of_the_servers(tmp_path: Path) -> None:
    from aiohttp import web

    class HungUp:
        headers = JSON

        @property
        def content(self) -> HungUp:
            return self

        async def read(self, most: int) -> bytes:
            raise ConnectionResetError("Connection lost")

    routes = web.RouteTableDef()
    load_pack_module("nodes.library.library_routes").register(routes, lambda: [tmp_path])
    for route in routes:
        if isinstance(route, web.RouteDef) and route.method == "POST":
            answer = asyncio.run(route.handler(HungUp()))  # type: ignore[arg-type]
            assert answer.status == 400 and "broke off" in answer.text  # type: ignore[union-attr, operator]
