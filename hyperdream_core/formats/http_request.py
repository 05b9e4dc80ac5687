"""A request to a server that one of our hosts runs: from the host's own page or from a program, and in JSON.

A browser lets any web page send forms and plain text to any server, localhost included, and says so in headers that
a page cannot forge. It sends JSON to another origin only after it has asked, and our hosts do not answer that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from ..json_text import JsonTextError, parse_json

LARGEST_BODY = 1_000_000
"""bytes; a request to the library holds names, notes and a number"""

_OWN_SITES = ("same-origin", "none")
_PORTS = {"http": 80, "https": 443}


def check_origin(headers: Mapping[str, str]) -> None:
    """Refuse what a page of another origin has sent; programs, which send no such headers, are let in.

    Args:
        headers: of the request, whose names may be asked for in any case.

    Raises:
        ConfigError: it comes from another site, or from another port of this one.
    """
    site = headers.get("Sec-Fetch-Site", "same-origin").strip().lower()
    origin = headers.get("Origin")
    hosts = [headers.get("Host", ""), *headers.get("X-Forwarded-Host", "").split(",")]
    if site not in _OWN_SITES or (origin is not None and not any(_is_at(origin, host.strip()) for host in hosts)):
        raise ConfigError(
            f"a page of another origin ({(origin or site)[:100]!r}) asked for this, but only the host's own page may; "
            "open the host's page itself, and behind a proxy pass its Host header on"
        )


def check_content_type(headers: Mapping[str, str]) -> None:
    """Refuse a body that does not call itself JSON, or is packed.

    Raises:
        ConfigError: another content type, none, or an encoding.
    """
    found = headers.get("Content-Type", "")
    if found.partition(";")[0].strip().lower() != "application/json":
        raise ConfigError(f"the content type is {found[:100]!r}, but only application/json is taken; send it so")
    packed = headers.get("Content-Encoding", "identity")
    if packed.strip().lower() != "identity":
        raise ConfigError(f"the body is packed as {packed[:100]!r}, but plain JSON is expected; send it unpacked")


def read_body(body: bytes, largest: int = LARGEST_BODY) -> dict[str, Any]:
    """The JSON object of a body.

    Args:
        body: as it was sent.
        largest: number of bytes that are read.

    Raises:
        ConfigError: too large, or no JSON object.
    """
    if len(body) > largest:
        raise ConfigError(f"the body has more than {largest / 1e6:g} MB; send a smaller one")
    try:
        return dict(parse_json(body, most=largest))
    except JsonTextError as error:
        raise ConfigError(f"the body is no JSON object, it {error}; send one with the identity's name") from error


def _is_at(origin: str, host: str) -> bool:
    """Whether an origin, such as `http://127.0.0.1:8188`, is the one that is served under this Host."""
    scheme, _, place = origin.strip().lower().partition("://")
    port = _PORTS.get(scheme)
    return bool(host) and port is not None and _with_port(place, port) == _with_port(host.lower(), port)


def _with_port(place: str, default: int) -> str:
    """HOST or HOST:PORT, which may be an IPv6 address in brackets, with the port written out."""
    has_port = ":" in place.rpartition("]")[2]
    return place if has_port else f"{place}:{default}"
