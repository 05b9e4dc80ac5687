"""Translations, help pages and templates against what the nodes really declare."""

from __future__ import annotations

import json
from typing import Any

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
