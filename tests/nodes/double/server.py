"""ComfyUI's server, as far as packs add routes to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class RouteTable:
    """Keeps what is added, under method and path."""

    def __init__(self) -> None:
        self.added: dict[tuple[str, str], Callable[..., Any]] = {}

    def get(self, path: str) -> Callable[..., Any]:
        return lambda handler: self.added.setdefault(("GET", path), handler)

    def post(self, path: str) -> Callable[..., Any]:
        return lambda handler: self.added.setdefault(("POST", path), handler)


class PromptServer:
    """The one server there is."""

    instance: PromptServer
    routes: RouteTable


PromptServer.instance = PromptServer()
PromptServer.instance.routes = RouteTable()
