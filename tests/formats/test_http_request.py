"""Requests to our hosts' servers: who may ask, and what is read."""

from __future__ import annotations

from typing import Any

import pytest

from hyperdream_core.errors import ConfigError
from hyperdream_core.formats.http_request import check_content_type, check_origin, read_body


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Host": "127.0.0.1:8188"},
        {"Host": "127.0.0.1:8188", "Origin": "http://127.0.0.1:8188", "Sec-Fetch-Site": "same-origin"},
        {"Host": "Studio.local", "Origin": "http://studio.local:80"},
        {"Host": "studio.local", "Origin": "https://studio.local"},
        {"Host": "[::1]:8188", "Origin": "http://[::1]:8188"},
        {"Host": "127.0.0.1:8188", "Sec-Fetch-Site": "none"},
        {"Host": "inner:8188", "X-Forwarded-Host": "studio.example", "Origin": "https://studio.example"},
    ],
)
def test_the_hosts_own_page_and_programs_are_let_in(headers: dict[str, str]) -> None:
    check_origin(headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": "http://127.0.0.1"},
        {"Origin": "http://127.0.0.1:8188@evil.example"},
        {"Origin": "http://127.0.0.1.evil.example:8188"},
        {"Origin": "http://127.0.0.1:99999999"},
        {"Origin": "http://[::1"},
        {"Origin": "file://"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "CROSS-SITE"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1:8188"},
    ],
)
def test_pages_of_other_origins_are_not(headers: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="only the host's own page may"):
        check_origin({"Host": "127.0.0.1:8188", **headers})


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", " application/json "])
def test_json_is_taken(kind: str) -> None:
    check_content_type({"Content-Type": kind})


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": ""},
        {"Content-Type": "text/plain"},
        {"Content-Type": "text/plain; application/json"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json-seq"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
def test_whatever_a_page_can_send_without_asking_is_not_taken(headers: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="send it"):
        check_content_type(headers)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[1]", b'"a"', b"3", b"null", b"\xff\xfe{}", b"[" * 100_000, b'{"a":' * 100_000, b'{"a": NaN}',
     b'{"a": -Infinity}', b'{"a": ' + b"9" * 5000 + b"}", b"{" + b" " * 2_000_000 + b"}"],
)  # fmt: skip
def test_what_is_no_json_object_is_one_sentence(body: Any) -> None:
    with pytest.raises(ConfigError, match="send"):
        read_body(body)


def test_an_object_is_read_as_it_is() -> None:
    assert read_body('{"name": "Märta", "strength": 0.5}'.encode()) == {"name": "Märta", "strength": 0.5}
