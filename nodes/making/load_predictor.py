"""Load Identity Predictor: the network that reads an identity off a face."""

from __future__ import annotations

from comfy_api.latest import io

from ...hyperdream_core.bundled import SHIPPED
from ...hyperdream_core.pipelines.predictors.predictor import open_predictor
from ..dials import choice
from ..host import folders, models, run
from ..wires import PREDICTOR, LoadedPredictor

BUILT_IN = "miniature (built in)"


class LoadPredictor(io.ComfyNode):
    """A hypernetwork from its file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperDreamLoadPredictor",
            display_name="Load Identity Predictor",
            category="HyperDream",
            description="Loads the network that turns a face into an identity. The built-in one belongs to the "
            "miniature. Put others into models/hyperdream/predictors; each works with one kind of "
            "checkpoint, such as SD 1.5 or SDXL.",
            inputs=[
                choice(
                    "predictor",
                    "The built-in one works with Load Miniature. Files lie in models/hyperdream/predictors.",
                    [BUILT_IN, *folders.predictor_names()],
                )
            ],
            outputs=[PREDICTOR.Output(display_name="predictor", tooltip="Connect to Predict Identity.")],
        )

    @classmethod
    def validate_inputs(cls, predictor: str | None = None) -> bool | str:
        """In place of ComfyUI's own look at the list, which does not say what is wrong with a file."""
        # It is None where another node gives the name, which is not known before that has run.
        if predictor in (None, BUILT_IN) or predictor in folders.predictor_names():
            return True
        problem = folders.why_left_out(folders.PREDICTORS, predictor)
        if problem:
            return f"{problem.rstrip('.')}; choose another predictor, or get this one again"
        return (
            f"{predictor or '(nothing chosen)'} is not among the files in models/hyperdream/predictors; copy it there "
            "and press R, or choose another one"
        )

    @classmethod
    def fingerprint_inputs(cls, predictor: str) -> str:
        """Changes when the file does."""
        if predictor == BUILT_IN:
            return predictor
        state = folders.stored_file(folders.PREDICTORS, predictor).stat()
        return f"{predictor} {state.st_mtime_ns} {state.st_size}"

    @classmethod
    def execute(cls, predictor: str) -> io.NodeOutput:
        with run.ordinary_tensors():
            own = predictor == BUILT_IN
            opened = open_predictor(SHIPPED if own else folders.stored_file(folders.PREDICTORS, predictor))
            return io.NodeOutput(LoadedPredictor(opened, models.networks_patcher(opened.network)))
