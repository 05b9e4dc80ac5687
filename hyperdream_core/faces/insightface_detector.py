"""Faces with five landmarks by SCRFD, the detector in insightface's model packs, which the user provides.

The packs (antelopev2, buffalo_l and smaller ones) may be used for non-commercial research only.

Source: SCRFD, arXiv:2105.04714; the meaning of its outputs is that of insightface's `model_zoo/scrfd.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import FileFormatError
from .face import Face, Search, face_from_landmarks
from .onnx_models import OnnxModel, open_model, require_model

_STRIDES = (8, 16, 32)
_SIDE = 640
_LARGEST_SIDE = 2048
_MOST = 500
"""hits that are looked at, the surest ones"""
_WEAKEST = 0.2
"""Scores below this are not worth telling of."""
_CERTAIN = 0.7
"""Score from which a face settles how the picture is turned; upright faces reach 0.7 to 0.95."""
_LARGEST_OVERLAP = 0.4


class InsightfaceDetector:
    """SCRFD behind the detectors' interface."""

    name = "insightface"

    def __init__(self, folders: Sequence[Path]) -> None:
        """Open the detector of a pack in one of the folders.

        Raises:
            MissingDependencyError: onnxruntime is not installed.
            FileFormatError: no detector in the folders, or a file that is none.
        """
        self._model = open_model(require_model("detector", folders))
        self._side = _check(self._model)

    @property
    def about(self) -> str:
        return f"insightface's {self._model.about}"

    def find(self, picture: Tensor, min_score: float) -> Search:
        """Faces in a picture (3, h, w) in 0..1; a padded copy if there is none, turns if none is certain."""
        # Quarters turned -> what was seen. Of a group on its head, one face may answer weakly in the upright picture.
        found: dict[int, list[Face]] = {}
        ways = (((0,), 0.0, f"at {self._side} px"), ((0,), 0.5, "on a padded copy"), ((1, 3, 2), 0.25, "quarter turns"))
        looked = []
        for turns, pad, label in ways:
            best = max((face.score for faces in found.values() for face in faces), default=0.0)
            if best >= max(min_score, _CERTAIN):
                break
            if best >= min_score and len(turns) == 1:
                continue
            looked.append(label)
            for turn in turns:
                found[turn] = found.get(turn, []) + self._search(picture, turn, pad)
        return Search(tuple(_without_overlaps(_of_one_turn(found, min_score))), ", ".join(looked))

    def _search(self, picture: Tensor, turn: int, pad: float) -> list[Face]:
        """Faces of the picture turned counter-clockwise by quarters, in px of the picture itself."""
        height, width = picture.shape[-2:]
        turned = torch.rot90(picture, turn, (1, 2))
        room = round(pad * max(height, width))
        if room:
            turned = F.pad(turned[None], (room,) * 4, mode="replicate")[0]
        square, scale = _letterboxed(turned, self._side)
        outputs = self._model.run(square)
        try:
            scores, boxes, points = _decoded(outputs, self._side)
        except (ValueError, ArithmeticError, LookupError) as error:
            raise FileFormatError(
                self._model.path,
                f"puts out other shapes than a face detector ({error}); use det_10g.onnx or scrfd_10g_bnkps.onnx of an "
                "insightface pack",
            ) from error
        faces = []
        rows = np.flatnonzero(scores >= _WEAKEST)
        for row in rows[np.argsort(-scores[rows], kind="stable")[:_MOST]]:
            corners = _turned_back((boxes[row].reshape(2, 2) / scale - room), turn, height, width)
            five = _turned_back(points[row] / scale - room, turn, height, width)
            box = (*corners.min(0), *corners.max(0))
            faces.append(face_from_landmarks(torch.from_numpy(five), float(scores[row]), box))
        return _without_overlaps(faces)


def _check(model: OnnxModel) -> int:
    """The side of the square that the detector takes.

    Raises:
        FileFormatError: not a detector with landmarks.
    """
    if len(model.output_shapes) != 3 * len(_STRIDES) or len(model.input_shape) != 4:
        raise FileFormatError(
            model.path,
            f"has {len(model.output_shapes)} outputs, but a face detector with landmarks has {3 * len(_STRIDES)}; use "
            "det_10g.onnx or scrfd_10g_bnkps.onnx of an insightface pack",
        )
    side = model.input_shape[2] or _SIDE
    if side % _STRIDES[-1] or not 0 < side <= _LARGEST_SIDE or model.input_shape[3] not in (None, side):
        raise FileFormatError(
            model.path,
            f"takes pictures of {model.input_shape[2:]} px, expected a square of at most {_LARGEST_SIDE} whose side "
            f"divides by {_STRIDES[-1]}; use another file",
        )
    return side


def _letterboxed(picture: Tensor, side: int) -> tuple[np.ndarray, float]:
    """The picture in the upper left corner of a square (1, 3, side, side) in -1..1, and the scale it has there."""
    scale = side / max(picture.shape[-2:])
    size = [max(1, round(length * scale)) for length in picture.shape[-2:]]
    small = F.interpolate(picture[None].float(), size, mode="bilinear", antialias=True)
    # insightface pads with black and maps 0..255 by (x - 127.5) / 128.
    padded = F.pad(small, (0, side - size[1], 0, side - size[0]))
    return ((padded * 255.0 - 127.5) / 128.0).cpu().numpy().astype(np.float32), scale


def _decoded(outputs: Sequence[np.ndarray], side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (n,), boxes (n, 4) and landmarks (n, 5, 2) px of all anchors: distances in strides from their centres."""
    all_scores, all_boxes, all_points = [], [], []
    for level, stride in enumerate(_STRIDES):
        scores, boxes, points = (
            outputs[level + kind * len(_STRIDES)].reshape(-1, width) for kind, width in enumerate((1, 4, 10))
        )
        cells = side // stride
        anchors = len(scores) // cells**2
        rows, columns = np.mgrid[:cells, :cells]
        centres = np.repeat(np.stack([columns, rows], axis=-1).reshape(-1, 2), anchors, axis=0) * float(stride)
        boxes = boxes * stride
        all_boxes.append(np.concatenate([centres - boxes[:, :2], centres + boxes[:, 2:]], axis=1))
        all_points.append(centres[:, None] + points.reshape(-1, 5, 2) * stride)
        all_scores.append(scores[:, 0])
    return np.concatenate(all_scores), np.concatenate(all_boxes), np.concatenate(all_points)


def _turned_back(points: np.ndarray, turn: int, height: int, width: int) -> np.ndarray:
    """Points (n, 2) of the picture before `turn` quarters counter-clockwise."""
    x, y = points[:, 0], points[:, 1]
    back = {0: (x, y), 1: (width - y, x), 2: (width - x, height - y), 3: (y, height - x)}[turn]
    return np.stack(back, axis=1).astype(np.float32)


def _of_one_turn(found: Mapping[int, Sequence[Face]], min_score: float) -> list[Face]:
    """What was seen in the turn whose sure faces have the highest sum of scores, and what is certain in others."""
    sums = {
        turn: sum(face.score for face in _without_overlaps(faces) if face.score >= min_score)
        for turn, faces in found.items()
    }
    taken = max(sums, key=lambda turn: sums[turn])
    if not sums[taken]:
        return [face for faces in found.values() for face in faces]
    return [face for turn, faces in found.items() for face in faces if turn == taken or face.score >= _CERTAIN]


def _without_overlaps(faces: Sequence[Face]) -> list[Face]:
    """The faces, surest first, without those that share more than 0.4 of their union with a surer one."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.score):
        if all(_overlap(face.box, other.box) <= _LARGEST_OVERLAP for other in kept):
            kept.append(face)
    return kept


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / max(areas - shared, 1e-9)
