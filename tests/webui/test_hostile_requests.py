"""A hundred hostile requests to the tab's routes: each is refused in a sentence, and nothing has changed afterwards."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .conftest import make_identity

pytest.importorskip("fastapi", reason="both hosts bring it; nothing else here needs it")
pytest.importorskip("httpx", reason="fastapi's test client")
pytestmark = pytest.mark.filterwarnings("ignore")

VERBS = ("faces", "create", "rename", "delete", "blend", "export")
JSON = "application/json"
NESTED = "[" * 200_000
NOT_OBJECTS = [
    "", "null", "[]", '"x"', "1", "true", "{", "{'name': 1}", '{"name": NaN}', '{"name": Infinity}', NESTED,
    '{"a":' * 100_000, '{"name": ' + "9" * 6000 + "}", "\ufeff{}", "{}{}",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, 0, -1, 2**70, 1e300, [], {}, [[[]]], "", " ", ".", "..", "../../etc/passwd", "/etc/passwd", "C:\\x",
    "a\x00b", "a\nb", "x" * 5000, "\ud800", "<script>", "con", "\u202e", "mara.safetensors/..", "~",
]  # fmt: skip


@pytest.fixture
def client(tmp_path: Path) -> Any:
    from .test_routes import make_client

    made = make_client(tmp_path, {})
    made.name = made.jobs.loras.put(make_identity("sd15"), "mara", Image.new("RGB", (8, 8)))
    return made


def state(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def requests(name: str) -> list[tuple[str, dict[str, str], bytes]]:
    """Verb, headers and body of each."""
    own = json.dumps({"name": name, "new_name": "taken", "first": name, "second": name, "share": 0.5}).encode()
    foreign = [
        {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://testserver:7860"},
        {"Origin": "http://testserver.evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, {"Origin": ""},
    ]  # fmt: skip
    types: list[dict[str, str]] = [
        {}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"}, {"Content-Type": "text/plain; application/json"},
        {"Content-Type": "application/jsonp"}, {"Content-Type": ""}, {"Content-Type": JSON, "Content-Encoding": "gzip"},
    ]  # fmt: skip
    found = [(verb, {"Content-Type": JSON, **more}, own) for verb in ("delete", "rename", "blend") for more in foreign]
    found += [(verb, more, own) for verb in ("delete", "rename", "export") for more in types]
    found += [("delete", {"Content-Type": JSON}, body.encode()) for body in NOT_OBJECTS]
    found += [("delete", {"Content-Type": JSON}, b'{"name": "' + b"x" * 1_100_000 + b'"}'), ("delete", {}, b"\xff\xfe")]
    dice = random.Random(16)
    for value in VALUES * 2:
        verb = dice.choice(VERBS)
        body = {"name": value, "new_name": value, "first": value, "second": name, "share": value, "images": value}
        found.append((verb, {"Content-Type": JSON}, json.dumps(body).encode()))
    return found


def test_every_one_is_refused_in_a_sentence_and_changes_nothing(client: Any, tmp_path: Path) -> None:
    before, hostile = state(tmp_path), requests(client.name)
    assert len(hostile) >= 100
    for verb, headers, body in hostile:
        answer = client.post(f"/hyperdream/v1/{verb}", content=body, headers=headers)
        about = (verb, headers, body[:80])
        assert 400 <= answer.status_code < 500, (about, answer.text[:300])
        words = answer.json()["error"]
        assert 20 < len(words) <= 2000 and "Traceback" not in words and str(tmp_path) not in words, (about, words)
        assert state(tmp_path) == before, about


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/plain"}])
def test_a_page_of_another_origin_deletes_nothing_by_a_request_without_a_preflight(
    client: Any, headers: dict[str, str]
) -> None:
    body = json.dumps({"name": client.name}).encode()
    page = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    assert client.post("/hyperdream/v1/delete", content=body, headers=headers).status_code == 415
    assert client.post("/hyperdream/v1/delete", content=body, headers={**headers, **page}).status_code == 403
    assert client.jobs.loras.entries()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"},
        {"Origin": "https://let.in", "Sec-Fetch-Site": "cross-site"},
    ],
)
def test_programs_the_hosts_own_page_and_whom_the_user_lets_in_are_answered(
    client: Any, headers: dict[str, str]
) -> None:
    assert client.post("/hyperdream/v1/delete", json={"name": client.name}, headers=headers).json() == {}


def test_a_file_whose_name_is_no_text_stops_no_listing(client: Any) -> None:
    from os import fsencode

    folder = client.jobs.loras.lora_folder
    (Path(str(folder)) / b"\xff.safetensors".decode("utf-8", "surrogateescape")).write_bytes(b"x")
    assert b"\xff" in b"".join(map(fsencode, folder.iterdir()))
    assert len(client.get("/hyperdream/v1/identities").json()["identities"]) == 2


def test_what_cannot_be_asked_for_by_get_is_no_error_of_the_server(client: Any) -> None:
    for name in ("", "../../x", "a\x00b", "x" * 3000, "%ff"):
        assert client.get("/hyperdream/v1/preview", params={"name": name}).status_code == 404
    assert client.get("/hyperdream/v1/delete").status_code == 405
