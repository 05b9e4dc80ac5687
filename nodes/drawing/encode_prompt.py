"""Encode Prompt with Identity: the prompt with the word that stands for the person."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ...hyperdream_core.identity import Identity
from ...hyperdream_core.pipelines.prompts import insert_identifier, names_subject
from ..dials import subjects_prompt_box
from ..host import models
from ..wires import IDENTITY


class EncodePrompt(io.ComfyNode):
    """A prompt that names the subject."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperDreamEncodePrompt",
            display_name="Encode Prompt with Identity",
            category="HyperDream",
            description="Like CLIP Text Encode, but puts the person's trigger word where you write [V]. If the "
            "prompt does not name the person, the trigger word is added and you are told.",
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder, from Apply Identity."),
                IDENTITY.Input("identity", tooltip="Whose trigger word to put in."),
                subjects_prompt_box("text"),
            ],
            outputs=[
                io.Conditioning.Output(tooltip="Connect to the sampler's positive input."),
                io.String.Output(display_name="text", tooltip="The prompt as it was encoded."),
            ],
        )

    @classmethod
    def execute(cls, clip: Any, identity: Identity, text: str) -> io.NodeOutput:
        prompt = insert_identifier(text, identity.identifier, identity.class_noun, missing="insert")
        said = prompt
        if not names_subject(text, identity.identifier):
            said = f"The text named nobody, so it was changed to: {prompt}\nWrite [V] where the person belongs."
        return io.NodeOutput(models.conditioning(clip, prompt), prompt, ui=ui.PreviewText(said))
