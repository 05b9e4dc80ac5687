"""The verbs of the tab over HTTP, behind the host's own API switch and passwords; every refusal is one sentence.

Bodies are read here and not by FastAPI, whose older releases take whatever has no content type for JSON: that is how a
page of somebody else's speaks to a server on this machine.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from fastapi import Depends, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, Response
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from PIL import Image
from starlette.requests import ClientDisconnect

from hyperdream_core.errors import ConfigError, HyperDreamError
from hyperdream_core.formats.http_request import LARGEST_BODY, check_content_type, check_origin, read_body

from .jobs import Jobs
from .orders import CHECKPOINT, FaceChoice, Order

PREFIX = "/hyperdream/v1"
_LARGEST_PICTURE = 64_000_000
_LARGEST_WITH_PICTURES = 256_000_000
_MOST_PICTURES = 50
_LONGEST_REFUSAL = 2000
_KINDS = {str: "a text", int: "a whole number", bool: "true or false"}

Body = dict[str, Any]


def register(app: Any, jobs: Jobs) -> None:
    """Add the routes, once for an app.

    Args:
        app: the host's FastAPI.
        jobs: does the work.
    """
    if any(getattr(route, "path", "").startswith(PREFIX) for route in app.router.routes):
        return
    webui = jobs.webui
    guards = [Depends(_guard(webui.api_users))] if webui.api_users else []
    for path, answer in _readers(jobs).items():
        app.add_api_route(PREFIX + path, answer, methods=["GET"], dependencies=guards, response_class=Response)
    for path, (action, largest) in _verbs(jobs).items():
        endpoint = _endpoint(webui, action, largest)
        app.add_api_route(PREFIX + path, endpoint, methods=["POST"], dependencies=guards, response_class=Response)


def _readers(jobs: Jobs) -> dict[str, Callable[..., Any]]:
    """What is asked for with GET and changes nothing; plain functions, which the server runs on threads."""
    loras = jobs.loras

    def identities() -> Any:
        return _said({"identities": [asdict(entry) for entry in loras.entries()]}, 200)

    def preview(name: str = "") -> Any:
        try:
            path = loras.library.preview(name)
        except HyperDreamError as error:
            return _refusal(error, 404)
        if path is None:
            return _refusal(ConfigError("this identity has no picture beside it; create it anew to get one"), 404)
        return FileResponse(path, media_type="image/png", headers={"X-Content-Type-Options": "nosniff"})

    return {"/identities": identities, "/preview": preview}


def _verbs(jobs: Jobs) -> dict[str, tuple[Callable[[Body], Body], int]]:
    """What is done on a POST with a body, and how large that may be."""
    webui, loras = jobs.webui, jobs.loras

    def faces(body: Body) -> Body:
        with _pictures(body) as files:
            previews, report = jobs.look(files, _face_choice(body), _like(body.get("on", CHECKPOINT), CHECKPOINT, "on"))
        return {"report": report, "previews": [_encoded(one) for one in previews]}

    def create(body: Body) -> Body:
        with _pictures(body) as files:
            order = _order(body, files)
            made = webui.in_turn(lambda: webui.with_models(lambda: jobs.create(order)))
        facts = {key: value for key, value in vars(made).items() if key != "grid"}
        return {**facts, "grid": None if made.grid is None else _encoded(made.grid)}

    def rename(body: Body) -> Body:
        return {"name": loras.rename(_text(body, "name"), _text(body, "new_name"))}

    def delete(body: Body) -> Body:
        loras.delete(_text(body, "name"))
        return {}

    def blend(body: Body) -> Body:
        first, second, name = (_text(body, key) for key in ("first", "second", "name"))
        return {"name": loras.blend(first, second, _number(body, "share", 0.5), name)}

    def export(body: Body) -> Body:
        return {"path": str(loras.export(_text(body, "name")))}

    def changing(action: Callable[[Body], Body]) -> tuple[Callable[[Body], Body], int]:
        def run(body: Body) -> Body:
            answer = action(body)
            webui.refresh_networks()
            return answer

        return run, LARGEST_BODY

    changes = {"/rename": rename, "/delete": delete, "/blend": blend, "/export": export}
    return {
        "/faces": (faces, _LARGEST_WITH_PICTURES),
        "/create": (create, _LARGEST_WITH_PICTURES),
        **{path: changing(action) for path, action in changes.items()},
    }


def _endpoint(webui: Any, action: Callable[[Body], Body], largest: int) -> Callable[..., Any]:
    """A verb for the server: who asks is looked at first, then the body is read, and only then anything is done."""

    async def endpoint(request: Request) -> Response:
        try:
            if not webui.lets_in(request.headers.get("Origin", "")):
                check_origin(request.headers)
        except ConfigError as error:
            return _refusal(error, 403)
        try:
            check_content_type(request.headers)
        except ConfigError as error:
            return _refusal(error, 415)
        try:
            body = read_body(await _start_of(request, largest + 1), largest)
            return _said(await run_in_threadpool(action, body), 200)
        except HyperDreamError as error:
            return _refusal(error, 400)

    return endpoint


async def _start_of(request: Request, most: int) -> bytes:
    """The body up to so many bytes, whatever length it claims to have."""
    read = bytearray()
    try:
        async for part in request.stream():
            read += part[: most - len(read)]
            if len(read) >= most:
                break
    except ClientDisconnect as error:
        raise ConfigError("the connection ended within the body; send it again") from error
    return bytes(read)


def _guard(users: dict[str, str]) -> Callable[..., None]:
    """Lets those in whom the host's own API lets in."""

    def check(credentials: HTTPBasicCredentials = Depends(HTTPBasic())) -> None:  # noqa: B008
        known = users.get(credentials.username)
        given = credentials.password.encode()
        if known is None or not secrets.compare_digest(given, known.encode()):
            raise HTTPException(401, "Incorrect username or password", {"WWW-Authenticate": "Basic"})

    # The host's FastAPI resolves texts as annotations in this module, where the names are known.
    return check


def _said(value: Body, status: int) -> Response:
    # In ASCII: names of files may hold bytes that are no text, which UTF-8 cannot say.
    return Response(json.dumps(value), status_code=status, media_type="application/json")


def _refusal(error: Exception, status: int) -> Response:
    return _said({"error": str(error)[:_LONGEST_REFUSAL]}, status)


@contextmanager
def _pictures(body: Body) -> Iterator[list[Path]]:
    """The photographs in a body, as files for as long as they are needed."""
    given = body.get("images")
    if not isinstance(given, list) or not given or not all(isinstance(one, str) for one in given):
        raise ConfigError("images must be a list of pictures in base64, at least one; send them so")
    if len(given) > _MOST_PICTURES:
        raise ConfigError(f"there are {len(given)} images, expected at most {_MOST_PICTURES}; send the best of them")
    with tempfile.TemporaryDirectory(prefix="hyperdream-") as folder:
        files = []
        for number, text in enumerate(given, start=1):
            text = text.partition(",")[2] if text.startswith("data:") else text
            if len(text) > _LARGEST_PICTURE:
                raise ConfigError(f"image {number} is larger than {_LARGEST_PICTURE / 1e6:.0f} MB; send a smaller one")
            try:
                content = base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError) as error:
                raise ConfigError(f"image {number} is not base64 ({error}); send a picture file so encoded") from error
            files.append(Path(folder) / f"image-{number}")
            files[-1].write_bytes(content)
        yield files


def _order(body: Body, files: list[Path]) -> Order:
    own = {field.name: field.default for field in fields(Order) if field.name not in ("files", "faces")}
    face = {field.name for field in fields(FaceChoice)}
    unknown = sorted(set(body) - set(own) - face - {"images"})
    if unknown:
        raise ConfigError(f"{unknown[0][:60]!r} is no setting; known: {', '.join([*own, *sorted(face)])}")
    values = {name: _like(body[name], default, name) for name, default in own.items() if name in body}
    return Order(files=files, faces=_face_choice(body), **values)


def _face_choice(body: Body) -> FaceChoice:
    known = {field.name: field.default for field in fields(FaceChoice)}
    return FaceChoice(**{name: _like(body[name], default, name) for name, default in known.items() if name in body})


def _like(value: Any, default: Any, name: str) -> Any:
    """A setting of the default's type."""
    if type(value) is type(default):
        return value
    raise ConfigError(f"{name} must be {_KINDS[type(default)]}, got {_shown(value)}; send one")


def _text(body: Body, key: str) -> str:
    return str(_like(body.get(key), "", key))


def _number(body: Body, key: str, default: float) -> float:
    value = body.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9:
        raise ConfigError(f"{key} must be a number, got {_shown(value)}; send one")
    return float(value)


def _shown(value: Any) -> str:
    """A stranger's value in few characters."""
    if isinstance(value, int) and not -(10**20) < value < 10**20:
        return "one of many digits"
    return repr(value)[:60] if isinstance(value, (str, int, float, type(None))) else type(value).__name__


def _encoded(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()
