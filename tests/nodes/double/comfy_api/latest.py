"""Schemas that keep what they are told, so that tests can read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


class _Socket:
    type_name = ""

    def __init__(self, id: str = "", **facts: Any) -> None:
        self.id, self.facts = id, facts


class _Wire:
    """A type of the API: `Wire.Input("name", ...)` and `Wire.Output(...)`."""

    def __init__(self, name: str) -> None:
        self.Input = type("Input", (_Socket,), {"type_name": name})
        self.Output = type("Output", (_Socket,), {"type_name": name})


@dataclass
class _Schema:
    node_id: str
    display_name: str
    category: str
    description: str = ""
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    is_output_node: bool = False


class _ComfyNode:
    @classmethod
    def define_schema(cls) -> _Schema:
        raise NotImplementedError

    @classmethod
    def execute(cls, **inputs: Any) -> _NodeOutput:
        raise NotImplementedError


class _NodeOutput:
    def __init__(self, *args: Any, ui: Any = None) -> None:
        self.args, self.ui = args, ui

    def __getitem__(self, index: int) -> Any:
        return self.args[index]


class ComfyExtension:
    """What a pack hands to the host."""


_WIRES = {
    "Model": "MODEL", "Clip": "CLIP", "Vae": "VAE", "Image": "IMAGE", "String": "STRING", "Int": "INT",
    "Float": "FLOAT", "Mask": "MASK", "Combo": "COMBO", "Conditioning": "CONDITIONING", "LoraModel": "LORA_MODEL",
}  # fmt: skip

io = SimpleNamespace(
    Schema=_Schema,
    ComfyNode=_ComfyNode,
    NodeOutput=_NodeOutput,
    Custom=_Wire,
    **{name: _Wire(wire) for name, wire in _WIRES.items()},
)


class _PreviewText:
    def __init__(self, value: str) -> None:
        self.value = value

    def as_dict(self) -> dict[str, Any]:
        return {"text": (self.value,)}


ui = SimpleNamespace(PreviewText=_PreviewText)
