"""Translations, help pages and templates against what the nodes really declare."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import pytest

from .conftest import ROOT, Host
from .test_schemas import schemas


def definitions(language: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    return found


def test_texts_name_the_inputs_and_outputs_that_nodes_declare(host: Host) -> None:
    for node, (_, schema) in schemas(host).items():
        for language in ("en", "zh", "ja"):
            texts = definitions(language)[node]
            assert set(texts.get("inputs", {})) == {one.id for one in schema.inputs}, (language, node)
            assert len(texts["outputs"]) == len(schema.outputs), (language, node)


def test_english_texts_are_the_nodes_own(host: Host) -> None:
    for node, (_, schema) in schemas(host).items():
        texts = definitions("en")[node]
        assert (texts["display_name"], texts["description"]) == (schema.display_name, schema.description)
        for one in schema.inputs:
            assert texts["inputs"][one.id]["tooltip"] == one.facts["tooltip"], (node, one.id)


def test_templates_connect_inputs_that_nodes_declare(host: Host) -> None:
    known = schemas(host)
    for path in (ROOT / "example_workflows").glob("*.json"):
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
            if node["type"] in known:
                declared = {one.id for one in known[node["type"]][1].inputs}
                assert {slot["name"] for slot in node["inputs"]} <= declared, (path.name, node["type"])


TALLER = 1.4
"""how much taller than its size a node may come out in ComfyUI's newer renderer, and in other languages"""
TITLE = 30
"""px above a node's place"""
LIVE_PICTURE = 260
"""px that a node grows by while it shows what it is making"""
SHOW_WHAT_THEY_MAKE = ("KSampler", "HyperDreamPolishIdentity")


@pytest.mark.parametrize("number", range(1, 8))
def test_nodes_of_templates_have_room_in_both_renderers(number: int) -> None:
    (path,) = (ROOT / "example_workflows").glob(f"{number} *.json")
    workflow = json.loads(path.read_text(encoding="utf-8"))
    boxes = {f"{node['id']} {node['type']}": _room(node) for node in workflow["nodes"]}
    for (one, first), (other, second) in combinations(boxes.items(), 2):
        assert not _overlap(first, second), f"{one} and {other}"
    groups = {group["title"]: _corners(*group["bounding"]) for group in workflow["groups"]}
    for (one, first), (other, second) in combinations(groups.items(), 2):
        assert not _overlap(first, second), f"{one} and {other}"
    for node, (left, top, right, bottom) in boxes.items():
        around = [box for box in groups.values() if _overlap(box, (left, top, right, bottom))]
        for box in around:
            whole = box[0] <= left and box[1] <= top and right <= box[2] and bottom <= box[3]
            assert whole and len(around) == 1, f"{node} and the edge of its group"


Box = tuple[float, float, float, float]
"""Left, top, right and bottom, px."""


def _room(node: dict[str, Any]) -> Box:
    """What a node takes with its title, at its tallest."""
    (left, top), (width, height) = node["pos"], node["size"]
    grown = TALLER * height + LIVE_PICTURE * (node["type"] in SHOW_WHAT_THEY_MAKE)
    return _corners(left, top - TITLE, width, TITLE + grown)


def _corners(left: float, top: float, width: float, height: float) -> Box:
    return left, top, left + width, top + height


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def test_help_pages_give_limits_defaults_and_tooltips_as_they_are(host: Host) -> None:
    for node, (_, schema) in schemas(host).items():
        page = (ROOT / "web" / "docs" / f"{node}.md").read_text(encoding="utf-8")
        for one in schema.inputs:
            (row,) = (line for line in page.splitlines() if line.startswith(f"| **{one.id}** |"))
            assert row.endswith(f"| {one.facts['tooltip']} |"), (node, one.id)
            if one.type_name in ("INT", "FLOAT"):
                low, high, default = (_plain(one.facts[fact]) for fact in ("min", "max", "default"))
                assert f"| {low} to {high}, default {default} |" in row, (node, one.id)


def _plain(number: float) -> str:
    return f"{number:.5f}".rstrip("0").rstrip(".")
