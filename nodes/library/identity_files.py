"""Save Identity and Load Identity: files in output/hyperdream and models/hyperdream."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import datetime, timezone

from comfy_api.latest import io, ui
from torch import Tensor

from ...hyperdream_core.formats.file_names import free_file
from ...hyperdream_core.formats.identity_file import read_identity, write_identity
from ...hyperdream_core.identity import Identity
from ...hyperdream_core.pictures.files import save_image
from ..host import folders, run
from ..wires import IDENTITY


class SaveIdentity(io.ComfyNode):
    """An identity to its file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperDreamSaveIdentity",
            display_name="Save Identity",
            category="HyperDream",
            description="Saves the identity as a small file in output/hyperdream, where Load Identity finds it. A"
            " file of the same name is never overwritten; a number is added.",
            inputs=[
                IDENTITY.Input("identity", tooltip="The identity to save."),
                io.String.Input("name", default="identity", tooltip="A plain name, such as the person's."),
                io.String.Input(
                    "notes",
                    default="",
                    multiline=True,
                    tooltip="Anything you want to remember; it is stored inside the file and travels with it.",
                ),
                io.Image.Input(
                    "preview",
                    optional=True,
                    tooltip="A picture to show in the library; best a generated one, as anyone who gets the files "
                    "sees it.",
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Where the file is.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, identity: Identity, name: str, notes: str, preview: Tensor | None = None) -> io.NodeOutput:
        with run.ordinary_tensors():
            path = free_file(folders.output_folder("hyperdream"), name)
            facts = {**identity.made_by, "saved": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")}
            if notes.strip():
                facts["notes"] = notes.strip()
            write_identity(path, replace(identity, made_by=facts))
            if preview is not None:
                save_image(path.with_suffix(".png"), preview[0, ..., :3].clone().movedim(-1, 0))
            # The browser part looks for the second entry, and reads the lists of identities anew.
            shown = {**ui.PreviewText(f"saved as {path}").as_dict(), "hyperdream_saved": (path.name,)}
            return io.NodeOutput(str(path), ui=shown)


class LoadIdentity(io.ComfyNode):
    """An identity from its file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperDreamLoadIdentity",
            display_name="Load Identity",
            category="HyperDream",
            description="Loads an identity that was saved before, or that somebody gave you: put it into "
            "models/hyperdream and press R.",
            inputs=[
                io.Combo.Input(
                    "identity",
                    options=folders.identity_names(),
                    tooltip="Files in models/hyperdream and output/hyperdream. Press R to see new ones.",
                )
            ],
            outputs=[IDENTITY.Output(display_name="identity", tooltip="Apply it, polish it, blend it or export it.")],
        )

    @classmethod
    def validate_inputs(cls, identity: str | None = None) -> bool | str:
        """In place of ComfyUI's own look at the list, whose message has no remedy."""
        # It is None where another node gives the name, which is not known before that has run.
        if identity is None or identity in folders.identity_names():
            return True
        problem = folders.why_left_out(folders.IDENTITIES, identity)
        if problem:
            return f"{problem.rstrip('.')}; choose another identity, or save this one anew"
        return (
            f"{identity or '(nothing chosen)'} is not among the identities in models/hyperdream and output/hyperdream; "
            "run the template '1 Quickstart' or Save Identity first, or choose another one"
        )

    @classmethod
    def fingerprint_inputs(cls, identity: str) -> str:
        """Changes when the file's content does."""
        return hashlib.sha256(folders.stored_file(folders.IDENTITIES, identity).read_bytes()).hexdigest()

    @classmethod
    def execute(cls, identity: str) -> io.NodeOutput:
        with run.ordinary_tensors():
            return io.NodeOutput(read_identity(folders.stored_file(folders.IDENTITIES, identity)))
