"""The library over HTTP: what the sidebar sends and gets, on a real server of the host's kind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.nodes.pack import load_pack_module
from tests.pipelines.test_library import PNG, put, stored  # noqa: F401

JSON = {"Content-Type": "application/json"}

aiohttp = pytest.importorskip("aiohttp", reason="the host's HTTP server; comes with '.[test]'")


def talk(folder: Path, conversation: Callable[[Any], Awaitable[None]]) -> None:
    """Serve a folder and let `conversation` speak to it."""
    from aiohttp import web
    from aiohttp.test_utils import TestClient, TestServer

    async def run() -> None:
        routes, application = web.RouteTableDef(), web.Application()
        load_pack_module("nodes.library.library_routes").register(routes, lambda: [folder])
        application.add_routes(routes)
        async with TestClient(TestServer(application)) as client:
            await conversation(client)

    asyncio.run(run())


def test_the_sidebars_conversation(tmp_path: Path, stored: bytes) -> None:  # noqa: F811
    put(tmp_path, "mara", stored, picture=True)
    put(tmp_path, "hostile", b"\xff" * 64)

    async def conversation(client: Any) -> None:
        listing = await (await client.get("/hyperdream/library")).json()
        by_title = {entry["title"]: entry for entry in listing["identities"]}
        assert by_title["mara"]["notes"] == "from the beach" and "truncated" in by_title["hostile"]["problem"]

        picture = await client.get("/hyperdream/library/preview", params={"name": "mara.safetensors"})
        assert (picture.headers["Content-Type"], await picture.read()) == ("image/png", PNG)
        assert picture.headers["X-Content-Type-Options"] == "nosniff"

        wishes = {"name": "mara.safetensors", "notes": "new", "strength": 0.5}
        assert (await client.post("/hyperdream/library/annotate", json=wishes)).status == 200
        renamed = await client.post("/hyperdream/library/rename", json={"name": "mara.safetensors", "new_name": "Lena"})
        assert await renamed.json() == {"name": "Lena.safetensors"}
        listing = await (await client.get("/hyperdream/library")).json()
        lena = next(entry for entry in listing["identities"] if entry["title"] == "Lena")
        assert (lena["notes"], lena["strength"], lena["preview"] is not None) == ("new", 0.5, True)

        assert (await client.post("/hyperdream/library/delete", json={"name": "Lena.safetensors"})).status == 200

    talk(tmp_path, conversation)
    assert [path.name for path in tmp_path.iterdir()] == ["hostile.safetensors"]


@pytest.mark.parametrize(
    ("action", "body", "sentence"),
    [
        ("rename", b"not json", "no JSON object"),
        ("rename", b"[1]", "no JSON object"),
        ("rename", b"[" * 100_000, "no JSON object"),
        ("rename", b"\xff\xfe", "no JSON object"),
        ("rename", b'{"name": "mara.safetensors"}', "new_name must be a text, got NoneType"),
        ("rename", b'{"name": "mara.safetensors", "new_name": "../up"}', "cannot be a name"),
        ("delete", b'{"name": "../../mara.safetensors"}', "there is no identity"),
        ("delete", b'{"name": ["mara.safetensors"]}', "name must be a text"),
        ("annotate", b'{"name": "mara.safetensors", "strength": "1"}', "strength must be a number"),
        ("annotate", b'{"name": "mara.safetensors", "strength": NaN}', "no JSON object"),
        ("annotate", b'{"name": "mara.safetensors", "strength": 1e999}', "no JSON object"),
        ("annotate", b'{"name": "mara.safetensors", "strength": ' + b"9" * 400 + b"}", "no JSON object"),
        ("annotate", b'{"name": "mara.safetensors", "notes": 5}', "notes must be a text"),
        ("annotate", b'{"name": "mara.safetensors", "notes": "\\ud800"}', "no JSON object"),
        ("annotate", b" " * 1_000_001, "send a smaller one"),
    ],
)
def test_a_refusal_is_one_sentence(
    tmp_path: Path,
    stored: bytes,  # noqa: F811
    action: str,
    body: bytes,
    sentence: str,
) -> None:
    path = put(tmp_path, "mara", stored)

    async def conversation(client: Any) -> None:
        answer = await client.post(f"/hyperdream/library/{action}", data=body, headers=JSON)
        assert answer.status == 400 and sentence in (await answer.json())["error"]

    talk(tmp_path, conversation)
    assert path.read_bytes() == stored


@pytest.mark.parametrize("query", ["", "?name=", "?name=../x.png", "?name=mara.safetensors"])
def test_a_missing_picture_is_not_found(tmp_path: Path, stored: bytes, query: str) -> None:  # noqa: F811
    put(tmp_path, "mara", stored)

    async def conversation(client: Any) -> None:
        answer = await client.get("/hyperdream/library/preview" + query)
        assert answer.status == 404 and (await answer.json())["error"]

    talk(tmp_path, conversation)


def test_the_pack_adds_its_routes_and_the_templates_portrait_when_it_is_loaded(host: Any) -> None:
    (host.folder / "input").mkdir()
    asyncio.run(host.pack.comfy_entrypoint())
    added = host.comfy("server").PromptServer.instance.routes.added
    gets, posts = {"", "/preview"}, {"/rename", "/delete", "/annotate"}
    ours = {("GET", "/hyperdream/library" + path) for path in gets}
    assert set(added) == ours | {("POST", "/hyperdream/library" + path) for path in posts}
    assert (host.folder / "input" / "hyperdream-portrait.png").is_file()
