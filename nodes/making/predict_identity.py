"""Predict Identity: from a face to an identity in a moment, without training."""

from __future__ import annotations

from comfy_api.latest import io

from ...hyperdream_core.faces.prepared_faces import Faces
from ..host import models, run
from ..wires import FACES, IDENTITY, PREDICTOR, LoadedPredictor


class PredictIdentity(io.ComfyNode):
    """What the predictor sees in the references."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperDreamPredictIdentity",
            display_name="Predict Identity",
            category="HyperDream",
            description="Makes an identity from the face in a moment, without training. Of several photographs, "
            "good ones count more than poor ones. Polish Identity brings it closer still.",
            inputs=[
                PREDICTOR.Input("predictor", tooltip="From Load Identity Predictor."),
                FACES.Input("faces", tooltip="From Prepare Face."),
            ],
            outputs=[IDENTITY.Output(display_name="identity", tooltip="Apply it, polish it, save it or export it.")],
        )

    @classmethod
    def execute(cls, predictor: LoadedPredictor, faces: Faces) -> io.NodeOutput:
        with run.ordinary_tensors():
            models.load(predictor.patcher)
            return io.NodeOutput(predictor.predictor.predict(faces)[0])
