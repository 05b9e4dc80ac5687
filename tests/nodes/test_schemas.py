"""What ComfyUI is told of the nodes."""

from __future__ import annotations

import ast
import asyncio
import inspect
from pathlib import Path
from typing import Any

from .conftest import ROOT, Host

IDS = [
    "HyperDreamLoadMiniature", "HyperDreamLoadPredictor", "HyperDreamPrepareFace", "HyperDreamPredictIdentity",
    "HyperDreamPolishIdentity", "HyperDreamPolishIdentityAdvanced", "HyperDreamApplyIdentity",
    "HyperDreamApplyIdentityAdvanced", "HyperDreamEncodePrompt", "HyperDreamSaveIdentity", "HyperDreamLoadIdentity",
    "HyperDreamExportLora", "HyperDreamBlendIdentities", "HyperDreamMeasureLikeness", "HyperDreamHybridGuidance",
    "HyperDreamHybridGuidanceAdvanced", "HyperDreamRegionalIdentities",
]  # fmt: skip
"""Never renamed: graphs that people have saved name them."""


def schemas(host: Host) -> dict[str, tuple[Any, Any]]:
    extension = asyncio.run(host.pack.comfy_entrypoint())
    nodes = asyncio.run(extension.get_node_list())
    return {schema.node_id: (node, schema) for node in nodes for schema in [node.define_schema()]}


def test_the_ids_are_those_that_saved_graphs_name(host: Host) -> None:
    assert list(schemas(host)) == IDS


def test_each_input_is_a_parameter_and_the_other_way_round(host: Host) -> None:
    for node, schema in schemas(host).values():
        parameters = inspect.signature(node.execute).parameters
        named = {name for name, one in parameters.items() if one.kind is not one.VAR_KEYWORD}
        inputs = {one.id for one in schema.inputs}
        takes_more = len(named) < len(parameters)
        assert named <= inputs if takes_more else named == inputs, schema.node_id


def test_an_optional_input_has_a_default(host: Host) -> None:
    for node, schema in schemas(host).values():
        parameters = inspect.signature(node.execute).parameters
        for one in schema.inputs:
            if one.facts.get("optional"):
                assert parameters[one.id].default is None, (schema.node_id, one.id)


def test_everything_is_explained(host: Host) -> None:
    for _, schema in schemas(host).values():
        assert schema.display_name and len(schema.description) > 40
        assert schema.category == ("HyperDream/advanced" if "(Advanced)" in schema.display_name else "HyperDream")
        for socket in [*schema.inputs, *schema.outputs]:
            assert len(socket.facts["tooltip"]) > 8, (schema.node_id, socket.id)


def test_defaults_lie_within_their_own_limits(host: Host) -> None:
    for _, schema in schemas(host).values():
        for one in schema.inputs:
            facts = one.facts
            if "min" in facts:
                assert facts["min"] <= facts["default"] <= facts["max"], (schema.node_id, one.id)
            if "options" in facts and "default" in facts:
                assert facts["default"] in facts["options"], (schema.node_id, one.id)


def test_only_the_host_files_know_comfyui() -> None:
    hosts = {"comfy", "folder_paths", "latent_preview", "server", "execution", "comfy_extras"}
    found = set()
    for path in Path(ROOT, "nodes").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            found |= {path.parent.name for name in names if name.partition(".")[0] in hosts}
    assert found == {"host"}
