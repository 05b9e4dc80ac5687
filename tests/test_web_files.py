"""What the browser is given: help, translations, templates and blueprint name the same nodes and hang together."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from hyperdream_core.bases import get_base

ROOT = Path(__file__).resolve().parents[1]
GUIDED = [
    "model", "clip", "prompt", "negative_prompt", "base_prompt", "guidance", "base_scale", "subject_scale", "schedule",
    "strength",
]  # fmt: skip
CONTRACT = {
    "HyperDreamLoadMiniature": [],
    "HyperDreamLoadPredictor": ["predictor"],
    "HyperDreamPrepareFace": ["image", "detector", "order", "index", "on_no_face", "landmarks"],
    "HyperDreamPredictIdentity": ["predictor", "faces"],
    "HyperDreamPolishIdentity": ["model", "clip", "vae", "faces", "identity", "steps", "caption", "seed"],
    "HyperDreamPolishIdentityAdvanced": ["model", "clip", "vae", "faces", "identity", "steps", "caption", "seed"],
    "HyperDreamApplyIdentity": ["model", "clip", "identity", "strength"],
    "HyperDreamApplyIdentityAdvanced": ["model", "clip", "identity", "strength", "start_percent", "end_percent"],
    "HyperDreamEncodePrompt": ["clip", "identity", "text"],
    "HyperDreamSaveIdentity": ["identity", "name", "notes", "preview"],
    "HyperDreamLoadIdentity": ["identity"],
    "HyperDreamExportLora": ["identity", "name", "model", "preview"],
    "HyperDreamBlendIdentities": ["first", "second", "share"],
    "HyperDreamMeasureLikeness": ["images", "faces"],
    "HyperDreamHybridGuidance": [*GUIDED, "lora", "identity"],
    "HyperDreamHybridGuidanceAdvanced": [*GUIDED, "weights", "lora", "identity", "neutral"],
    "HyperDreamRegionalIdentities": [*GUIDED, "identity_1", "mask_1", "identity_2", "mask_2"],
}
"""Node -> the inputs that saved workflows rely on; nodes and inputs are never renamed."""
LANGUAGES = ("en", "zh", "ja")
CORE_NODES = {
    "CheckpointLoaderSimple", "CLIPTextEncode", "EmptyLatentImage", "ImageScaleBy", "InvertMask", "KSampler",
    "LoadImage", "MarkdownNote", "MaskComposite", "PreviewImage", "SaveImage", "SolidMask", "VAEDecode",
}  # fmt: skip
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))
SCANNER_WORDS = re.compile(
    r"\beval\b|\bexec\b|\.connect\(|\.send\(|XMLHttpRequest|WebSocket|innerHTML|document\.write|new Function|"
    r"https?://|base64|\brequests\b|subprocess"
)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def node_definitions(language: str) -> dict[str, Any]:
    definitions: dict[str, Any] = read_json(ROOT / "locales" / language / "nodeDefs.json")
    return definitions


def declared_nodes() -> set[str]:
    """Ids in the nodes' own source."""
    ids: set[str] = set()
    for path in (ROOT / "nodes").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call):
                ids |= {
                    k.value.value for k in call.keywords if k.arg == "node_id" and isinstance(k.value, ast.Constant)
                }
    return ids


def test_every_node_that_is_declared_is_in_the_contract() -> None:
    assert declared_nodes() == set(CONTRACT)


@pytest.mark.parametrize("node", CONTRACT)
def test_every_node_has_a_help_page_that_names_its_inputs(node: str) -> None:
    page = (ROOT / "web" / "docs" / f"{node}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {node_definitions('en')[node]['display_name']}\n")
    for part in ("## Inputs", "## Outputs", "## What can go wrong"):
        assert page.count(part) == 1
    for name in node_definitions("en")[node].get("inputs", {}):
        assert f"| **{name}** |" in page, f"{name} is not explained"
    for picture in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page):
        assert (ROOT / "web" / "docs" / picture).is_file()


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_and_input_is_translated(language: str) -> None:
    definitions, english = node_definitions(language), node_definitions("en")
    assert set(definitions) == set(CONTRACT)
    for node, inputs in CONTRACT.items():
        texts = definitions[node]
        assert set(inputs) <= set(texts.get("inputs", {}))
        assert set(texts.get("inputs", {})) == set(english[node].get("inputs", {}))
        assert set(texts["outputs"]) == set(english[node]["outputs"])
        assert texts["display_name"] and texts["description"]
        assert all(entry["name"] and entry["tooltip"] for entry in texts.get("inputs", {}).values())


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_a_translation_is_one(language: str) -> None:
    for node, texts in node_definitions(language).items():
        tips = [entry["tooltip"] for entry in texts.get("inputs", {}).values()]
        for text in (texts["display_name"], texts["description"], *tips):
            assert re.search(r"[\u3040-\u30ff\u4e00-\u9fff]", text), f"{node}: {text}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_panels_texts_are_those_that_it_asks_for(language: str) -> None:
    texts = read_json(ROOT / "locales" / language / "main.json")["hyperdream"]
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "web").glob("*.js"))
    assert set(re.findall(r"\.text\(\s*\"(\w+)\"", source)) == set(texts)
    english = read_json(ROOT / "locales" / "en" / "main.json")["hyperdream"]
    for key, text in texts.items():
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", english[key])), key


def test_there_is_a_template_for_each_job_with_a_picture() -> None:
    assert [path.stem[0] for path in WORKFLOWS] == ["1", "2", "3", "4", "5", "6", "7"]
    for path in WORKFLOWS:
        picture = path.with_suffix(".jpg")
        assert picture.is_file() and picture.stat().st_size < 100_000


def links_of(graph: dict[str, Any]) -> list[dict[str, Any]]:
    """Links of a workflow or of a subgraph, under one set of names."""
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return [link if isinstance(link, dict) else dict(zip(keys, link, strict=True)) for link in graph["links"]]


def check_links(graph: dict[str, Any]) -> None:
    """Both ends of every link exist, know of it, and speak its type; no end knows of another link."""
    nodes, ends = {node["id"]: node for node in graph["nodes"]}, set()
    assert len(nodes) == len(graph["nodes"]), "two nodes have one id"
    if "inputNode" in graph:
        nodes[-10] = {"outputs": [{**slot, "links": slot["linkIds"]} for slot in graph["inputs"]]}
        nodes[-20] = {"inputs": [{**slot, "link": slot["linkIds"][0]} for slot in graph["outputs"]]}
    for link in links_of(graph):
        source = nodes[link["origin_id"]]["outputs"][link["origin_slot"]]
        target = nodes[link["target_id"]]["inputs"][link["target_slot"]]
        assert source["type"] == target["type"] == link["type"]
        assert link["id"] in source["links"] and target["link"] == link["id"]
        ends |= {(link["id"], "from"), (link["id"], "to")}
    known = {(n, "from") for node in nodes.values() for slot in node.get("outputs", []) for n in slot["links"] or []}
    known |= {(slot["link"], "to") for node in nodes.values() for slot in node.get("inputs", []) if slot.get("link")}
    assert known == ends


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_template_hangs_together(path: Path) -> None:
    workflow = read_json(path)
    check_links(workflow)
    assert {node["type"] for node in workflow["nodes"]} <= CORE_NODES | set(CONTRACT)
    assert any(node["type"] == "MarkdownNote" for node in workflow["nodes"])
    for node in workflow["nodes"]:
        unconnected = [
            slot["name"] for slot in node.get("inputs", []) if slot["link"] is None and slot.get("shape") != 7
        ]
        assert not unconnected, f"{node['type']} lacks {unconnected}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_template_on_the_miniature_draws_at_its_size(path: Path) -> None:
    nodes = read_json(path)["nodes"]
    types = {node["type"] for node in nodes}
    if "HyperDreamLoadMiniature" in types:
        side = get_base("miniature").picture_size * 8 // get_base("miniature").vae_factor
        sizes = [node["widgets_values"][:2] for node in nodes if node["type"] == "EmptyLatentImage"]
        assert sizes and all(size == [side, side] for size in sizes)


def test_an_identity_that_a_template_names_is_an_example_only() -> None:
    # Whoever opens the template may have saved nobody of that name; the browser part takes another then.
    nodes = [node for path in WORKFLOWS for node in read_json(path)["nodes"]]
    loaders = [node for node in nodes if node["type"] == "HyperDreamLoadIdentity"]
    assert loaders and {node["properties"]["hyperdream_example_for"] for node in loaders} == {
        get_base("miniature").name
    }
    assert '"hyperdream_example_for"' in (ROOT / "web" / "identity_lists.js").read_text(encoding="utf-8")


def test_the_templates_between_them_show_every_simple_node() -> None:
    shown = {node["type"] for path in WORKFLOWS for node in read_json(path)["nodes"]}
    assert set(CONTRACT) - shown == {"HyperDreamPolishIdentityAdvanced", "HyperDreamHybridGuidanceAdvanced"}


def test_the_blueprint_is_one_subgraph_that_hangs_together() -> None:
    blueprint = read_json(ROOT / "subgraphs" / "Photograph to identity.json")
    (box,), (inside,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    assert box["type"] == inside["id"] and inside["name"] == "Photograph to identity"
    check_links(inside)
    assert {node["type"] for node in inside["nodes"]} <= set(CONTRACT)
    for side in ("inputs", "outputs"):
        assert [(s["name"], s["type"]) for s in box[side]] == [(s["name"], s["type"]) for s in inside[side]]


@pytest.mark.parametrize("path", sorted((ROOT / "web").rglob("*.*")), ids=lambda path: path.name)
def test_no_browser_file_holds_a_word_of_the_scanner(path: Path) -> None:
    if path.suffix != ".png":
        text = path.read_text(encoding="utf-8")
        # Graph links are made by a method of the host that the scanner takes for a network call.
        assert not SCANNER_WORDS.findall(text)


def test_browser_modules_are_plain_and_found() -> None:
    scripts = sorted((ROOT / "web").glob("*.js"))
    names = {path.name for path in scripts}
    assert "hyperdream.js" in names
    for path in scripts:
        source = path.read_text(encoding="utf-8")
        assert source.startswith("/** ") and max(map(len, source.splitlines())) < 140, path.name
        for address in re.findall(r"from \"([^\"]+)\"", source):
            assert address in ("../../scripts/app.js", "../../scripts/api.js") or address.removeprefix("./") in names
