"""Measure Likeness: how much pictures look like the person, by a recogniser that had no part in making them."""

from __future__ import annotations

import math

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ...hyperdream_core.faces.likeness import open_likeness
from ...hyperdream_core.faces.prepared_faces import Faces
from ...hyperdream_core.miniature.companions import companions_of, small_families
from ...hyperdream_core.pictures.arrays import picture_from_array
from ..host import folders, run
from ..wires import FACES


class MeasureLikeness(io.ComfyNode):
    """Cosine of identity embeddings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperDreamMeasureLikeness",
            display_name="Measure Likeness",
            category="HyperDream",
            description="Says how much the pictures look like the person, from about 0 (a stranger) to 1 (the "
            "same picture). The miniature comes with its own recogniser. For photographs, put a "
            "recogniser (ArcFace, AuraFace or SFace, as an ONNX file) into models/insightface.",
            inputs=[
                io.Image.Input("images", tooltip="Generated pictures."),
                FACES.Input("faces", tooltip="The person, from Prepare Face."),
            ],
            outputs=[
                io.Float.Output(display_name="likeness", tooltip="The mean over all pictures; 0 if not measured."),
                io.String.Output(display_name="report", tooltip="The likeness of each picture, and what measured it."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images: Tensor, faces: Faces) -> io.NodeOutput:
        with run.ordinary_tensors():
            pictures = torch.stack(
                [picture_from_array(one.clone(), f"picture {n}").pixels for n, one in enumerate(images, start=1)]
            )
            likeness, by = _measured(pictures, faces)
        values = likeness.tolist()
        known = [value for value in values if not math.isnan(value)]
        lines = [
            f"picture {number}: {'no face found' if math.isnan(value) else f'{value:.2f}'}"
            for number, value in enumerate(values, start=1)
        ]
        mean = sum(known) / len(known) if known else 0.0
        report = "\n".join([f"likeness {mean:.2f}, by {by}", *lines]) if known else "\n".join([by, *lines])
        return io.NodeOutput(mean, report, ui=ui.PreviewText(report))


def _measured(pictures: Tensor, faces: Faces) -> tuple[Tensor, str]:
    """Likeness (b,) and who measured; no numbers and why not."""
    family = next(iter(small_families(max(pictures.shape[-2:]))), "")
    own = companions_of(family).own_recognizer()
    measure, by = open_likeness(faces, own, folders=folders.face_model_folders())
    return (pictures.new_zeros(0), by) if measure is None else (measure(pictures), by.removeprefix("measured by "))
