"""The library behind HTTP, for the sidebar: JSON in, JSON out, and every refusal as one sentence.

`register` takes the host's route table, so that nothing here has to find the host. Pages of other origins are refused
here as well: ComfyUI can be started so that it lets them through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...hyperdream_core.errors import ConfigError, HyperDreamError
from ...hyperdream_core.formats.http_request import LARGEST_BODY, check_content_type, check_origin, read_body
from ...hyperdream_core.pipelines.library import Library

if TYPE_CHECKING:
    from aiohttp import web

    _Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

PREFIX = "/hyperdream/library"


def register(routes: web.RouteTableDef, folders: Callable[[], Sequence[Path]]) -> None:
    """Add the library's routes.

    Args:
        routes: the host's table (`PromptServer.instance.routes`).
        folders: gives the identity folders in the host's order, asked anew for each call.
    """
    library = Library(folders)

    @routes.get(PREFIX)
    @_from_own_page
    async def entries(request: web.Request) -> web.Response:
        found = await asyncio.to_thread(library.entries)
        return _json({"identities": [asdict(entry) for entry in found]}, 200)

    @routes.get(PREFIX + "/preview")
    @_from_own_page
    async def preview(request: web.Request) -> web.StreamResponse:
        try:
            path = await asyncio.to_thread(library.preview, request.query.get("name", ""))
        except HyperDreamError as error:
            return _refusal(error, 404)
        if path is None:
            return _refusal(ConfigError("this identity has no picture beside it"), 404)
        from aiohttp import web

        # Whatever the file really is, the browser takes it for a picture or for nothing.
        headers = {"Content-Type": "image/png", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
        return web.FileResponse(path, headers=headers)

    @routes.post(PREFIX + "/rename")
    @_from_own_page
    async def rename(request: web.Request) -> web.Response:
        return await _answer(request, lambda r: {"name": library.rename(_text(r, "name"), _text(r, "new_name"))})

    @routes.post(PREFIX + "/delete")
    @_from_own_page
    async def delete(request: web.Request) -> web.Response:
        return await _answer(request, lambda r: library.delete(_text(r, "name")))

    @routes.post(PREFIX + "/annotate")
    @_from_own_page
    async def annotate(request: web.Request) -> web.Response:
        return await _answer(request, lambda r: library.annotate(_text(r, "name"), *_remarks(r)))


def _from_own_page(handler: _Handler) -> _Handler:
    """The handler, for requests that no page of another origin has sent."""

    @wraps(handler)
    async def guarded(request: web.Request) -> web.StreamResponse:
        try:
            check_origin(request.headers)
        except ConfigError as error:
            return _refusal(error, 403)
        return await handler(request)

    return guarded


async def _answer(request: web.Request, action: Callable[[dict[str, Any]], Any]) -> web.Response:
    """Do what is asked, off the event loop, or say why not."""
    try:
        check_content_type(request.headers)
    except ConfigError as error:
        return _refusal(error, 415)
    try:
        body = read_body(await _start_of(request, LARGEST_BODY + 1))
        result = await asyncio.to_thread(action, body)
    except HyperDreamError as error:
        return _refusal(error, 400)
    return _json(result or {}, 200)


async def _start_of(request: web.Request, most: int) -> bytes:
    """The body up to so many bytes, whatever length it claims to have.

    Raises:
        ConfigError: whoever sent it has hung up.
    """
    read = bytearray()
    try:
        while len(read) < most and (part := await request.content.read(most - len(read))):
            read += part
    except ConnectionError as error:
        raise ConfigError(f"the request broke off ({error}), but a whole one is expected; send it again") from error
    return bytes(read)


def _refusal(error: HyperDreamError, status: int) -> web.Response:
    return _json({"error": str(error)}, status)


def _json(value: dict[str, Any], status: int) -> web.Response:
    from aiohttp import web

    return web.json_response(value, status=status)


def _text(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str):
        raise ConfigError(f"{key} must be a text, got {type(value).__name__}; send one")
    return value


def _remarks(body: dict[str, Any]) -> tuple[str | None, float | None]:
    """Notes and strength; what is left out stays as it is."""
    strength = body.get("strength")
    if isinstance(strength, bool) or not isinstance(strength, int | float | None):
        raise ConfigError(f"strength must be a number, got {type(strength).__name__}; send one")
    if isinstance(strength, int) and not abs(strength) < 1e6:
        raise ConfigError("strength is a number of many digits, but a small one is expected; send one such as 1")
    return _text(body, "notes") if "notes" in body else None, None if strength is None else float(strength)
