"""A picture with its faces numbered, so that one can be asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..ops.crop import alignment, to_picture
from ..pictures.files import resize, to_pil
from .face import Face

_CHOSEN, _OTHER, _PAPER = (46, 160, 67), (210, 120, 20), (255, 255, 255)


def numbered_preview(
    picture: Tensor, faces: Sequence[Face], chosen: Sequence[int] = (), longest: int = 1024
) -> Image.Image:
    """The picture (3, h, w) with a frame and a number, from 1, at each face; those in `chosen` stand out in green."""
    scale = min(1.0, longest / max(picture.shape[-2:]))
    height, width = (max(1, round(side * scale)) for side in picture.shape[-2:])
    image = to_pil(resize(picture, height, width))
    draw = ImageDraw.Draw(image)
    line = max(2, round(max(image.size) / 160))
    for number, face in enumerate(faces, start=1):
        colour = _CHOSEN if number in chosen else _OTHER
        if face.landmarks is None:
            left, top, right, bottom = face.box
            corners = torch.tensor([[left, top], [right, top], [right, bottom], [left, bottom]])
        else:
            square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
            corners = to_picture(alignment(face.landmarks, 1.0), square)
        points = [(x, y) for x, y in (corners * scale).tolist()]
        draw.line([*points, points[0], points[1]], fill=colour, width=line, joint="curve")
        _label(draw, str(number), min(x for x, _ in points), min(y for _, y in points), image.size, colour)
    return image


def _label(
    draw: ImageDraw.ImageDraw, text: str, x: float, y: float, size: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    """A number on a plate at a point, moved so that it stays within the picture."""
    height = max(14, max(size) // 32)
    try:
        font: ImageFont.FreeTypeFont | ImageFont.ImageFont = ImageFont.load_default(height)
    except TypeError:
        # Pillow before 10.1 has only its small bitmap font.
        font = ImageFont.load_default()
    width = round(font.getlength(text)) + height // 2
    x, y = max(0.0, min(x, size[0] - width)), max(0.0, min(y, size[1] - 1.3 * height))
    draw.rounded_rectangle((x, y, x + width, y + 1.3 * height), height // 4, fill=colour)
    draw.text((x + width / 2 - font.getlength(text) / 2, y), text, font=font, fill=_PAPER)
