"""Blend Identities: somebody between two people."""

from __future__ import annotations

from comfy_api.latest import io

from ...hyperdream_core.identity import Identity, blended
from ..dials import share_dial
from ..host import run
from ..wires import IDENTITY


class BlendIdentities(io.ComfyNode):
    """The weighted mean of two identities."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperDreamBlendIdentities",
            display_name="Blend Identities",
            category="HyperDream",
            description="Mixes two people into a third, anywhere between them. Both identities must be for the "
            "same kind of checkpoint.",
            inputs=[
                IDENTITY.Input("first", tooltip="One person."),
                IDENTITY.Input("second", tooltip="The other."),
                share_dial(
                    "share", "How much of the second person: 0 is the first alone, 1 the second alone.", default=0.5
                ),
            ],
            outputs=[
                IDENTITY.Output(display_name="identity", tooltip="The blend; its trigger word is the first person's.")
            ],
        )

    @classmethod
    def execute(cls, first: Identity, second: Identity, share: float) -> io.NodeOutput:
        with run.ordinary_tensors():
            return io.NodeOutput(blended(first, second, share))
