"""The API on the hosts' kind of server: every verb, every refusal a sentence, and the host's passwords."""

from __future__ import annotations

import base64
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hyperdream_webui.lora_folder import LoraFolder
from hyperdream_webui.orders import Created, FaceChoice, Order
from PIL import Image

from hyperdream_core.bundled import bundled_examples

from .conftest import make_identity

pytest.importorskip("fastapi", reason="both hosts bring it; nothing else here needs it")
pytest.importorskip("httpx", reason="fastapi's test client")
pytestmark = pytest.mark.filterwarnings("ignore")

PORTRAIT = base64.b64encode((bundled_examples() / "portrait.png").read_bytes()).decode()


class FakeJobs:
    """Remembers what is asked of it."""

    def __init__(self, folder: Path, users: dict[str, str]) -> None:
        self.loras = LoraFolder(folder / "lora", folder / "own")
        self.orders: list[Order] = []
        self.refreshed = 0
        self.webui = SimpleNamespace(
            api_users=users,
            lets_in=lambda origin: origin == "https://let.in",
            in_turn=lambda job: job(),
            with_models=lambda job: job(),
            refresh_networks=lambda: setattr(self, "refreshed", self.refreshed + 1),
        )

    def look(self, files: list[Path], choice: FaceChoice, on: str) -> tuple[list[Image.Image], str]:
        assert all(file.is_file() for file in files)
        return [Image.new("RGB", (4, 4))], f"{len(files)} pictures, face {choice.face}, {on}"

    def create(self, order: Order) -> Created:
        self.orders.append(order)
        grid = Image.new("RGB", (4, 4))
        facts: dict[str, Any] = {
            "likeness": 0.5,
            "likeness_before": None,
            "report": "",
            "infotext": "",
            "cancelled": False,
        }
        return Created(name="mara-000000.safetensors", prompt="<lora:mara-000000:1>", grid=grid, **facts)


@pytest.fixture
def client(tmp_path: Path) -> Any:
    return make_client(tmp_path, {})


def make_client(folder: Path, users: dict[str, str]) -> Any:
    from fastapi import FastAPI
    from fastapi.testclient import TestClient
    from hyperdream_webui import routes

    app, jobs = FastAPI(), FakeJobs(folder, users)
    for _ in range(2):
        routes.register(app, jobs)  # type: ignore[arg-type]
    paths = [route.path for route in app.routes if route.path.startswith(routes.PREFIX)]
    assert len(paths) == len(set(paths)) == 8
    made = TestClient(app)
    made.jobs = jobs
    return made


def test_creating_passes_the_settings_on(client: Any) -> None:
    body = {"images": [PORTRAIT, f"data:image/png;base64,{PORTRAIT}"], "name": "mara", "steps": 7, "face": 2}
    answer = client.post("/hyperdream/v1/create", json=body)
    assert answer.status_code == 200 and answer.json()["prompt"] == "<lora:mara-000000:1>"
    made = client.jobs.orders[0]
    assert (len(made.files), made.name, made.steps, made.faces.face) == (2, "mara", 7, 2)
    assert base64.b64decode(answer.json()["grid"])[1:4] == b"PNG"
    assert not any(Path(file).exists() for file in made.files)


def test_looking_at_faces(client: Any) -> None:
    answer = client.post("/hyperdream/v1/faces", json={"images": [PORTRAIT], "on": "miniature"}).json()
    assert answer["report"] == "1 pictures, face 0, miniature" and len(answer["previews"]) == 1


def test_the_librarys_verbs(client: Any) -> None:
    loras = client.jobs.loras
    first, second = loras.put(make_identity("sd15"), "mara"), loras.put(make_identity("sd15", seed=9), "lena")
    post = lambda verb, **body: client.post(f"/hyperdream/v1/{verb}", json=body)  # noqa: E731
    assert post("blend", first=first, second=second, share=0.25, name="both").json()["name"].startswith("both-")
    renamed = post("rename", name=first, new_name="ana").json()["name"]
    assert Path(post("export", name=renamed).json()["path"]).is_file()
    assert post("delete", name=second).json() == {}
    titles = {entry["title"].split("-")[0] for entry in client.get("/hyperdream/v1/identities").json()["identities"]}
    assert titles == {"both", "ana"} and client.jobs.refreshed == 4
    assert client.get("/hyperdream/v1/preview", params={"name": renamed}).status_code == 404
    loras.show(renamed, Image.new("RGB", (4, 4)))
    shown = client.get("/hyperdream/v1/preview", params={"name": renamed})
    assert shown.headers["content-type"] == "image/png" and shown.content[1:4] == b"PNG"


@pytest.mark.parametrize(
    ("verb", "body", "words"),
    [
        ("create", {"images": [PORTRAIT], "stepz": 1}, "'stepz' is no setting"),
        ("create", {"images": [PORTRAIT], "steps": "many"}, "steps must be a whole number"),
        ("create", {"images": []}, "at least one"),
        ("create", {"images": ["%%%"]}, "is not base64"),
        ("create", {"images": [PORTRAIT], "on": "moon"}, "choose one of them"),
        ("rename", {"name": "gone.safetensors", "new_name": "x"}, "there is no identity"),
        ("rename", {"name": "../../x.safetensors", "new_name": "x"}, "there is no identity"),
        ("delete", {}, "name must be a text"),
        ("blend", {"first": "a", "second": "b", "name": "c", "share": "half"}, "share must be a number"),
        ("create", {"images": [PORTRAIT], "seed": 2**70}, "seed must lie in -1..4294967295"),
        ("create", {"images": [PORTRAIT], "draw_steps": 0}, "draw_steps must lie in 1..150"),
        ("create", {"images": [PORTRAIT], "draw_steps": 1_000_000}, "draw_steps must lie in 1..150"),
        ("create", {"images": [PORTRAIT], "steps": 1_000_000}, "steps must lie in"),
        ("create", {"images": [PORTRAIT], "batch": 1_000_000}, "batch must lie in"),
        ("create", {"images": [PORTRAIT], "size": 64_000}, "size must be a multiple"),
        ("create", {"images": [PORTRAIT], "identifier": ""}, "must be a word"),
        ("create", {"images": [PORTRAIT], "class_noun": " "}, "must be a word"),
        ("create", {"images": [PORTRAIT], "caption": "x" * 5000}, "shorten it"),
        ("create", {"images": [PORTRAIT], "caption": "\ud800"}, "is not UTF-8"),
        ("create", {"images": [PORTRAIT] * 60}, "60 images"),
        ("faces", {"images": [PORTRAIT], "on": ["checkpoint"]}, "on must be a text"),
        ("faces", {"images": [PORTRAIT], "on_no_face": "dance"}, "choose one of them"),
    ],
)
def test_a_refusal_is_a_sentence(client: Any, verb: str, body: dict[str, Any], words: str) -> None:
    answer = client.post(f"/hyperdream/v1/{verb}", json=body)
    assert answer.status_code == 400 and words in answer.json()["error"]


def test_the_hosts_passwords_are_asked_for(tmp_path: Path) -> None:
    client = make_client(tmp_path, {"me": "secret"})
    assert client.get("/hyperdream/v1/identities").status_code == 401
    assert client.get("/hyperdream/v1/identities", auth=("me", "guess")).status_code == 401
    assert client.get("/hyperdream/v1/identities", auth=("you", "secret")).status_code == 401
    assert client.get("/hyperdream/v1/identities", auth=("me", "secret")).status_code == 200
    assert client.post("/hyperdream/v1/delete", json={"name": "x"}).status_code == 401
