"""Prepare Face: find, choose and cut out the face in photographs, and say how good they are."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import torch
from comfy_api.latest import io
from torch import Tensor

from ...hyperdream_core.errors import ReferenceImageError
from ...hyperdream_core.faces.detectors import DetectorName
from ...hyperdream_core.faces.face import Face, FaceOrder, face_from_landmarks
from ...hyperdream_core.faces.prepare import PrepareConfig, PreparedReferences, prepare_references
from ...hyperdream_core.faces.prepared_faces import Faces, report_text
from ...hyperdream_core.pictures.arrays import picture_from_array
from ...hyperdream_core.pictures.files import resize
from ..dials import choice, count_dial
from ..host import folders, run
from ..wires import FACES, LANDMARKS

_SIZE = 512
"""Side of the crops that are kept, px; other sizes are cut from the photograph when they are asked for."""


class PrepareFace(io.ComfyNode):
    """Photographs of one person to references."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperDreamPrepareFace",
            display_name="Prepare Face",
            category="HyperDream",
            description="Finds the face in a photograph, turns it upright, cuts it out and tells you how good the "
            "photograph is for a likeness. Several photographs of one person, as a batch, make a better likeness.",
            inputs=[
                io.Image.Input("image", tooltip="One photograph, or a batch of photographs of the same person."),
                choice(
                    "detector",
                    "What finds the faces. auto: insightface if you have its models, otherwise the detector "
                    "that comes with scikit-image. already-cropped: the picture is just the face, as with the"
                    " miniature.",
                    get_args(DetectorName),
                ),
                choice(
                    "order",
                    "How several faces in a photograph are counted: the largest first, from left to right, or"
                    " from the centre outwards. The preview shows the numbers.",
                    get_args(FaceOrder),
                ),
                count_dial(
                    "index",
                    "Which face to take, counted from 1. 0 takes the first and tells you if there are others.",
                    default=0,
                    limits=(0, 99),
                ),
                choice(
                    "on_no_face",
                    "What to do with a photograph in which no face is found: stop with a message, leave it "
                    "out, or use the whole picture.",
                    ["stop", "skip", "whole-picture"],
                ),
                LANDMARKS.Input(
                    "landmarks",
                    optional=True,
                    tooltip="From ComfyUI's own Detect Face Landmarks, if you use it; no other detector is used then.",
                ),
            ],
            outputs=[
                FACES.Output(display_name="faces", tooltip="Connect to Predict, Polish or Measure."),
                io.Image.Output(display_name="preview", tooltip="The photographs with their faces numbered."),
                io.String.Output(display_name="report", tooltip="What was found, and how good it is."),
            ],
        )

    @classmethod
    def execute(
        cls, image: Tensor, detector: str, order: str, index: int, on_no_face: str, landmarks: Any = None
    ) -> io.NodeOutput:
        with run.ordinary_tensors():
            config = PrepareConfig(
                detector=detector,  # type: ignore[arg-type]
                face_order=order,  # type: ignore[arg-type]
                face=index,
                on_no_face=on_no_face,  # type: ignore[arg-type]
                face_models=folders.face_model_folders(),
            )
            pictures = [
                picture_from_array(one.clone(), f"picture {number}" if len(image) > 1 else "the picture")
                for number, one in enumerate(image, start=1)
            ]
            found = None if landmarks is None else _faces_of(landmarks, len(pictures))
            prepared = prepare_references(pictures, _SIZE, config, found)
            faces = Faces(prepared, config.margin)
            return io.NodeOutput(faces, _previews(prepared), report_text(prepared))


def _faces_of(landmarks: Any, pictures: int) -> list[list[Face]]:
    """The faces of each picture in ComfyUI's FACE_LANDMARKS."""
    frames = landmarks.get("frames") if isinstance(landmarks, dict) else None
    if not isinstance(frames, list) or len(frames) != pictures:
        count = len(frames) if isinstance(frames, list) else "no"
        raise ReferenceImageError(
            f"the landmarks are of {count} pictures, but there are {pictures}; detect them on the same image that is "
            "connected here"
        )
    return [
        [
            face_from_landmarks(
                torch.from_numpy(np.array(face["landmarks_xy"], dtype=np.float32)),
                float(face.get("score", 1.0)),
                [float(value) for value in face["bbox_xyxy"]],
            )
            for face in frame
        ]
        for frame in frames
    ]


def _previews(prepared: PreparedReferences) -> Tensor:
    """(n, h, w, 3) at the size of the first one."""
    pictures = [
        torch.from_numpy(np.asarray(one.preview(), dtype=np.float32) / 255).movedim(-1, 0) for one in prepared.pictures
    ]
    height, width = pictures[0].shape[-2:]
    return torch.stack([resize(picture, height, width) for picture in pictures]).movedim(1, -1)
