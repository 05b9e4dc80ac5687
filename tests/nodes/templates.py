"""Templates as the graphs that are sent to the server: what the browser does when Run is pressed."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.comfyui_server import Graph

from .conftest import ROOT

_WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
_WITHOUT_WORK = {"MarkdownNote"}


def template_graph(number: int, known: dict[str, Any]) -> Graph:
    """The template of that number; its nodes keep their ids.

    Args:
        number: that its name begins with.
        known: what the server says of its nodes.
    """
    (path,) = (ROOT / "example_workflows").glob(f"{number} *.json")
    workflow = json.loads(path.read_text(encoding="utf-8"))
    origins = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    graph = {}
    for node in workflow["nodes"]:
        if node["type"] not in _WITHOUT_WORK:
            wires = {slot["name"]: origins[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
            dials = _dialled(known[node["type"]], node.get("widgets_values", []))
            graph[str(node["id"])] = {"class_type": node["type"], "inputs": {**dials, **wires}}
    return graph


def _dialled(facts: dict[str, Any], values: list[Any]) -> dict[str, Any]:
    """A node's dials by name, from the values of its widgets in order."""
    left, dials = list(values), {}
    for name, (kind, *_) in {**facts["input"]["required"], **facts["input"].get("optional", {})}.items():
        if isinstance(kind, list) or kind in _WIDGETS:
            dials[name] = left.pop(0)
            if name == "seed" and left:
                left.pop(0)  # the browser's own: what becomes of the seed after a run
    # Load Image has a button besides.
    assert left in ([], ["image"]), left
    return dials
