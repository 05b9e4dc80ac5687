"""Export as LoRA: the identity as an ordinary LoRA file, for the stock LoRA loader and every other program."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ...hyperdream_core.errors import BaseMismatchError
from ...hyperdream_core.formats.container import read_tensors
from ...hyperdream_core.formats.file_names import free_file
from ...hyperdream_core.identity import Identity
from ...hyperdream_core.pictures.files import save_image
from ...hyperdream_core.pipelines.export import export_lora, write_lora_words
from ..host import folders, models, run
from ..wires import IDENTITY


class ExportLora(io.ComfyNode):
    """An identity as a LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperDreamExportLora",
            display_name="Export as LoRA",
            category="HyperDream",
            description="Writes an ordinary LoRA file into output/loras/hyperdream. ComfyUI's Load LoRA lists it after "
            "pressing R; A1111, Forge and diffusers read it too.",
            inputs=[
                IDENTITY.Input("identity", tooltip="The identity to export."),
                io.String.Input("name", default="identity-lora", tooltip="A plain name for the LoRA file."),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Connect a checkpoint to be told if the LoRA does not fit it.",
                ),
                io.Image.Input(
                    "preview",
                    optional=True,
                    tooltip="A picture of the person, which is kept beside the file for LoRA browsers.",
                ),
            ],
            outputs=[
                io.LoraModel.Output(display_name="lora", tooltip="For ComfyUI's Load LoRA Model."),
                io.String.Output(display_name="path", tooltip="Where the file is."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, identity: Identity, name: str, model: Any = None, preview: Tensor | None = None) -> io.NodeOutput:
        with run.ordinary_tensors():
            family = identity.family if model is None else models.family_of(model).name
            if family != identity.family:
                raise BaseMismatchError(
                    f"the identity was made for {identity.family!r}, but the model is {family!r}, "
                    "so its LoRA would do nothing there; connect a checkpoint of its family, or none"
                )
            path = export_lora(identity, free_file(folders.output_folder("loras", "hyperdream"), name))
            write_lora_words(path, identity)
            if preview is not None:
                save_image(path.with_suffix(".png"), preview[0, ..., :3].clone().movedim(-1, 0))
            said = f"saved as {path}\nPut 'a {identity.identifier} {identity.class_noun}' in the prompt."
            return io.NodeOutput(read_tensors(path)[1], str(path), ui=ui.PreviewText(said))
