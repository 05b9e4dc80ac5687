from __future__ import annotations

import numpy as np
import torch

from hyperdream_core.faces.face import face_from_box, whole_picture
from hyperdream_core.faces.preview import numbered_preview


def test_frames_lie_on_the_faces_and_the_chosen_one_stands_out() -> None:
    picture = torch.zeros(3, 300, 600)
    faces = [face_from_box((50, 100, 150, 200)), face_from_box((400, 100, 500, 200))]
    pixels = np.asarray(numbered_preview(picture, faces, (2,), longest=600)).astype(int)
    left, right = pixels[:, :300].reshape(-1, 3), pixels[:, 300:].reshape(-1, 3)
    assert ((left == (210, 120, 20)).all(1)).sum() > 300 and not (left == (46, 160, 67)).all(1).any()
    assert ((right == (46, 160, 67)).all(1)).sum() > 300 and not (right == (210, 120, 20)).all(1).any()


def test_large_pictures_are_reduced_and_edges_hold_the_numbers() -> None:
    picture = torch.zeros(3, 100, 400)
    preview = numbered_preview(picture, [whole_picture(picture)] * 12, longest=200)
    assert preview.size == (200, 50)
    assert np.asarray(preview).any()
