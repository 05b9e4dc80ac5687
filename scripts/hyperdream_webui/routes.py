"""The verbs of the tab over HTTP, behind the host's own API switch and passwords; every refusal is one sentence.

Bodies are plain JSON objects, checked here: the hosts bring different releases of pydantic.
"""

from __future__ import annotations

import base64
import binascii
import io
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from fastapi import Body, Depends, HTTPException
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from PIL import Image

from hyperdream_core.errors import ConfigError, HyperDreamError

from .jobs import Jobs
from .orders import CHECKPOINT, FaceChoice, Order

PREFIX = "/hyperdream/v1"
_LARGEST_PICTURE = 64_000_000


def register(app: Any, jobs: Jobs) -> None:
    """Add the routes, once for an app.

    Args:
        app: the host's FastAPI.
        jobs: does the work.
    """
    if any(getattr(route, "path", "").startswith(PREFIX) for route in app.router.routes):
        return
    webui, loras = jobs.webui, jobs.loras
    guards = [Depends(_guard(webui.api_users))] if webui.api_users else []

    # Plain functions: the host's server runs them on threads of their own.
    def identities() -> Any:
        return {"identities": [asdict(entry) for entry in loras.entries()]}

    def preview(name: str = "") -> Any:
        try:
            path = loras.library.preview(name)
        except HyperDreamError as error:
            return _refusal(error, 404)
        if path is None:
            return _refusal(ConfigError("this identity has no picture beside it; create it anew to get one"), 404)
        return FileResponse(path, media_type="image/png", headers={"X-Content-Type-Options": "nosniff"})

    def faces(body: dict = Body(...)) -> Any:  # noqa: B008
        def look() -> dict[str, Any]:
            with _pictures(body) as files:
                previews, report = jobs.look(files, _face_choice(body), body.get("on", CHECKPOINT))
            return {"report": report, "previews": [_encoded(one) for one in previews]}

        return _answer(look)

    def create(body: dict = Body(...)) -> Any:  # noqa: B008
        def make() -> dict[str, Any]:
            with _pictures(body) as files:
                order = _order(body, files)
                made = webui.in_turn(lambda: webui.with_models(lambda: jobs.create(order)))
            facts = {key: value for key, value in vars(made).items() if key != "grid"}
            return {**facts, "grid": None if made.grid is None else _encoded(made.grid)}

        return _answer(make)

    def rename(body: dict = Body(...)) -> Any:  # noqa: B008
        return _changed(lambda: {"name": loras.rename(_text(body, "name"), _text(body, "new_name"))})

    def delete(body: dict = Body(...)) -> Any:  # noqa: B008
        def gone() -> dict[str, Any]:
            loras.delete(_text(body, "name"))
            return {}

        return _changed(gone)

    def blend(body: dict = Body(...)) -> Any:  # noqa: B008
        first, second = (lambda: _text(body, "first")), (lambda: _text(body, "second"))
        return _changed(
            lambda: {"name": loras.blend(first(), second(), _number(body, "share", 0.5), _text(body, "name"))}
        )

    def export(body: dict = Body(...)) -> Any:  # noqa: B008
        return _changed(lambda: {"path": str(loras.export(_text(body, "name")))})

    def _changed(action: Callable[[], dict[str, Any]]) -> Any:
        answer = _answer(action)
        webui.refresh_networks()
        return answer

    for path, endpoint in (("/identities", identities), ("/preview", preview)):
        app.add_api_route(PREFIX + path, endpoint, methods=["GET"], dependencies=guards)
    posts = {
        "/faces": faces,
        "/create": create,
        "/rename": rename,
        "/delete": delete,
        "/blend": blend,
        "/export": export,
    }
    for path, endpoint in posts.items():
        app.add_api_route(PREFIX + path, endpoint, methods=["POST"], dependencies=guards)


def _guard(users: dict[str, str]) -> Callable[..., None]:
    """Lets those in whom the host's own API lets in."""

    def check(credentials: HTTPBasicCredentials = Depends(HTTPBasic())) -> None:  # noqa: B008
        known = users.get(credentials.username)
        given = credentials.password.encode()
        if known is None or not secrets.compare_digest(given, known.encode()):
            raise HTTPException(401, "Incorrect username or password", {"WWW-Authenticate": "Basic"})

    # The host's FastAPI resolves texts as annotations in this module, where the names are known.
    return check


def _answer(action: Callable[[], dict[str, Any]]) -> Any:
    try:
        return action()
    except HyperDreamError as error:
        return _refusal(error, 400)


def _refusal(error: Exception, status: int) -> JSONResponse:
    return JSONResponse({"error": str(error)}, status_code=status)


@contextmanager
def _pictures(body: dict[str, Any]) -> Iterator[list[Path]]:
    """The photographs in a body, as files for as long as they are needed."""
    given = body.get("images")
    if not isinstance(given, list) or not given or not all(isinstance(one, str) for one in given):
        raise ConfigError("images must be a list of pictures in base64, at least one; send them so")
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


def _order(body: dict[str, Any], files: list[Path]) -> Order:
    own = {field.name: field.default for field in fields(Order) if field.name not in ("files", "faces")}
    face = {field.name for field in fields(FaceChoice)}
    unknown = sorted(set(body) - set(own) - face - {"images"})
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is no setting; known: {', '.join([*own, *sorted(face)])}")
    values = {name: _like(body[name], default, name) for name, default in own.items() if name in body}
    return Order(files=files, faces=_face_choice(body), **values)


def _face_choice(body: dict[str, Any]) -> FaceChoice:
    known = {field.name: field.default for field in fields(FaceChoice)}
    return FaceChoice(**{name: _like(body[name], default, name) for name, default in known.items() if name in body})


def _like(value: Any, default: Any, name: str) -> Any:
    """A setting of the default's type; numbers without a fraction are whole ones."""
    if type(value) is type(default):
        return value
    raise ConfigError(f"{name} must be a {type(default).__name__}, got {value!r}; send one")


def _text(body: dict[str, Any], key: str) -> str:
    return str(_like(body.get(key), "", key))


def _number(body: dict[str, Any], key: str, default: float) -> float:
    value = body.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{key} must be a number, got {value!r}; send one")
    return float(value)


def _encoded(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()
