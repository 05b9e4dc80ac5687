"""What surrounds a portrait: six backgrounds, four styles and the accessories, each named in captions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .canvas import Canvas, arc, blend, box, ellipse


@dataclass(frozen=True)
class HeadFrame:
    """Where things sit on a head, (b, 1, 1) each, in head coordinates."""

    half_width: Tensor
    top: Tensor
    chin: Tensor
    eye_height: Tensor
    eye_spacing: Tensor
    face_x: Tensor  # sideways shift of the features by the head's turn


def paint_background(canvas: Canvas, x: Tensor, y: Tensor, background: Tensor, mood: Tensor) -> None:
    """Paint the six backgrounds, chosen by index (b,); `mood` (b, 2) in 0..1 shifts their light and layout."""
    count = background.shape[0]
    light = mood[:, 0].reshape(-1, 1, 1)
    place = (mood[:, 1].reshape(-1, 1, 1) - 0.5) * 0.3
    for index, paint in enumerate((_studio, _beach, _forest, _city, _mountains, _sunset)):
        rows = (background == index).nonzero().squeeze(-1)
        if len(rows) == 0:
            continue
        part = Canvas(canvas.pixels[rows])
        paint(part, x.expand(count, -1, -1)[rows], y.expand(count, -1, -1)[rows], light[rows], place[rows])
        canvas.pixels = canvas.pixels.index_copy(0, rows, part.pixels)


def _gradient(canvas: Canvas, position: Tensor, *colours: tuple[float, float, float]) -> None:
    b, _, h, w = canvas.pixels.shape
    flat = blend(list(colours), position.expand(b, h, w).reshape(-1))
    canvas.pixels = flat.reshape(b, h, w, 3).permute(0, 3, 1, 2).contiguous()


def _colour(canvas: Canvas, red: float, green: float, blue: float) -> Tensor:
    return torch.tensor([red, green, blue], device=canvas.pixels.device).expand(canvas.pixels.shape[0], 3)


def _studio(canvas: Canvas, x: Tensor, y: Tensor, light: Tensor, place: Tensor) -> None:
    glow = torch.exp(-((x - place) ** 2 + (y + 0.25) ** 2) * 1.1) * (0.75 + 0.25 * light)
    _gradient(canvas, glow, (0.52, 0.55, 0.62), (0.80, 0.83, 0.88))


def _beach(canvas: Canvas, x: Tensor, y: Tensor, light: Tensor, place: Tensor) -> None:
    _gradient(canvas, (y + 1.0) * 0.7, (0.36, 0.68, 0.95), (0.78, 0.92, 0.99))
    canvas.paint(canvas.cover(-(y - 0.05 - 0.2 * place)), _colour(canvas, 0.13, 0.55, 0.72))
    shore = 0.42 + 0.2 * place + 0.03 * torch.sin(4.0 * x)
    canvas.paint(canvas.cover(-(y - shore + 0.05)), _colour(canvas, 0.90, 0.97, 0.97))
    canvas.paint(canvas.cover(-(y - shore)), _colour(canvas, 0.95, 0.84, 0.58))


def _forest(canvas: Canvas, x: Tensor, y: Tensor, light: Tensor, place: Tensor) -> None:
    _gradient(canvas, (y + 1.0) * 0.5, (0.62, 0.80, 0.48), (0.20, 0.42, 0.18))
    for offset, width in ((-0.82, 0.09), (-0.42, 0.06), (0.46, 0.07), (0.86, 0.1)):
        trunk = (x - offset - 0.5 * place).abs() - width
        canvas.paint(canvas.cover(trunk, 2.0), _colour(canvas, 0.33, 0.22, 0.13))
    leaves = y + 0.55 + 0.10 * torch.sin(7.0 * (x + place)) + 0.05 * torch.sin(17.0 * x + 1.0)
    canvas.paint(canvas.cover(leaves, 2.0), _colour(canvas, 0.13, 0.36, 0.15))


def _city(canvas: Canvas, x: Tensor, y: Tensor, light: Tensor, place: Tensor) -> None:
    _gradient(canvas, (y + 1.0) * 0.6, (0.05, 0.06, 0.20), (0.22, 0.16, 0.40))
    for offset, width, height in ((-0.78, 0.24, -0.35), (-0.30, 0.2, -0.7), (0.30, 0.22, -0.55), (0.80, 0.24, -0.2)):
        centre = offset + 0.4 * place
        canvas.paint(canvas.cover(box(x - centre, y - height - 1.0, width, 1.0)), _colour(canvas, 0.09, 0.10, 0.16))
        for column in (-0.5, 0.5):
            lit = box(x - centre - column * width, torch.remainder(y - height, 0.28) - 0.14, 0.05, 0.06)
            lit = torch.maximum(lit, height - y)
            canvas.paint(canvas.cover(lit), _colour(canvas, 0.98, 0.83, 0.40))


def _mountains(canvas: Canvas, x: Tensor, y: Tensor, light: Tensor, place: Tensor) -> None:
    _gradient(canvas, (y + 1.0) * 0.6, (0.55, 0.72, 0.90), (0.93, 0.95, 0.97))
    for offset, peak, slope in ((-0.65, -0.55, 1.0), (0.7, -0.7, 1.1)):
        ridge = (x - offset - place).abs() * slope + peak - y
        canvas.paint(canvas.cover(ridge * 0.7), _colour(canvas, 0.38, 0.42, 0.52))
        snow = torch.maximum(ridge, y - peak - 0.32 - 0.06 * torch.sin(14.0 * x))
        canvas.paint(canvas.cover(snow * 0.7), _colour(canvas, 0.97, 0.98, 1.0))
    canvas.paint(canvas.cover(-(y - 0.5 - 0.05 * torch.sin(5.0 * x))), _colour(canvas, 0.30, 0.47, 0.33))


def _sunset(canvas: Canvas, x: Tensor, y: Tensor, light: Tensor, place: Tensor) -> None:
    _gradient(canvas, (y + 1.0) * 0.62, (0.36, 0.18, 0.42), (0.90, 0.36, 0.30), (1.0, 0.74, 0.34))
    canvas.paint(canvas.cover(ellipse(x - 0.62 - place, y + 0.12, 0.24, 0.24), 2.0), _colour(canvas, 1.0, 0.92, 0.62))
    canvas.paint(canvas.cover(-(y - 0.45 - 0.06 * torch.sin(3.0 * x + 1.0)), 2.0), _colour(canvas, 0.28, 0.13, 0.27))


def paint_accessories(canvas: Canvas, x: Tensor, y: Tensor, frame: HeadFrame, accessory: Tensor, hue: Tensor) -> None:
    """Paint glasses, hat, headphones and scarf (indices 1 to 4); `hue` (b,) in 0..1 picks the colour."""
    colours = [(0.80, 0.20, 0.22), (0.16, 0.38, 0.72), (0.16, 0.55, 0.38), (0.93, 0.68, 0.18)]
    for index, paint in ((1, _glasses), (2, _hat), (3, _headphones), (4, _scarf)):
        rows = (accessory == index).nonzero().squeeze(-1)
        if len(rows) == 0:
            continue
        part = Canvas(canvas.pixels[rows])
        row_frame = HeadFrame(**{name: value[rows] for name, value in vars(frame).items()})
        paint(part, x[rows], y[rows], row_frame, blend(colours, hue[rows]))
        canvas.pixels = canvas.pixels.index_copy(0, rows, part.pixels)


def _glasses(canvas: Canvas, x: Tensor, y: Tensor, frame: HeadFrame, colour: Tensor) -> None:
    dark = _colour(canvas, 0.10, 0.10, 0.13)
    for side in (-1.0, 1.0):
        lens = box(x - frame.face_x - side * frame.eye_spacing, y - frame.eye_height, 0.175, 0.15, 0.08)
        canvas.paint(canvas.cover(lens) * 0.18, _colour(canvas, 0.75, 0.88, 1.0))
        canvas.paint(canvas.cover(lens.abs() - 0.022), dark)
        arm_x = (frame.eye_spacing + 0.18 + frame.half_width) * 0.5
        arm = box(
            x - side * arm_x - 0.5 * frame.face_x,
            y - frame.eye_height + 0.02,
            (frame.half_width - frame.eye_spacing - 0.18).clamp(min=0.01) * 0.5 + 0.02,
            0.016,
        )
        canvas.paint(canvas.cover(arm), dark)
    bridge = box(x - frame.face_x, y - frame.eye_height + 0.01, (frame.eye_spacing - 0.17).clamp(min=0.02), 0.02)
    canvas.paint(canvas.cover(bridge), dark)


def _hat(canvas: Canvas, x: Tensor, y: Tensor, frame: HeadFrame, colour: Tensor) -> None:
    brim_y = frame.top + 0.24
    crown = torch.maximum(ellipse(x, y - brim_y, frame.half_width * 1.02, 0.50), y - brim_y)
    canvas.paint(canvas.cover(crown), colour)
    band = torch.maximum(crown, brim_y - 0.13 - y)
    canvas.paint(canvas.cover(band), colour * 0.45)
    brim = ellipse(x, y - brim_y, frame.half_width * 1.5, 0.075)
    canvas.paint(canvas.cover(brim), colour * 0.82)


def _headphones(canvas: Canvas, x: Tensor, y: Tensor, frame: HeadFrame, colour: Tensor) -> None:
    dark = _colour(canvas, 0.16, 0.16, 0.19)
    radius = frame.half_width * 1.14
    middle = frame.eye_height + 0.05
    hoop = ellipse(x, y - middle, radius, middle - frame.top + 0.13).abs() - 0.045
    canvas.paint(canvas.cover(torch.maximum(hoop, y - middle)), dark)
    for side in (-1.0, 1.0):
        cup = box(x - side * radius, y - middle - 0.04, 0.10, 0.19, 0.08)
        canvas.paint(canvas.cover(cup), colour)
        canvas.paint(canvas.cover(cup + 0.05), colour * 0.7)


def _scarf(canvas: Canvas, x: Tensor, y: Tensor, frame: HeadFrame, colour: Tensor) -> None:
    wrap = box(x, y - frame.chin - 0.15, 0.50, 0.17, 0.14)
    canvas.paint(canvas.cover(wrap), colour)
    stripe = torch.maximum(wrap, (torch.remainder(x * 1.0 + y * 0.6, 0.26) - 0.13).abs() - 0.045)
    canvas.paint(canvas.cover(stripe), colour * 0.5 + 0.48)
    tail = box(x - 0.28, y - frame.chin - 0.50, 0.13, 0.36, 0.05)
    canvas.paint(canvas.cover(tail), colour * 0.88)
    canvas.paint(canvas.cover(arc(x, y - frame.chin - 0.06, 0.4, 0.07, 0.02)) * 0.5, colour * 0.5)


def apply_style(pixels: Tensor, style: Tensor) -> Tensor:
    """Turn finished pictures (b, 3, h, w) into photo, watercolour, comic or sepia, by index (b,)."""
    grey = (pixels * pixels.new_tensor([0.30, 0.59, 0.11]).reshape(1, 3, 1, 1)).sum(1, keepdim=True)
    paper = pixels.new_tensor([1.0, 0.985, 0.95]).reshape(1, 3, 1, 1)
    y = torch.linspace(-1.0, 1.0, pixels.shape[-2], device=pixels.device).reshape(1, 1, -1, 1)
    x = torch.linspace(-1.0, 1.0, pixels.shape[-1], device=pixels.device).reshape(1, 1, 1, -1)
    vignette = ((x**4 + y**4) * 0.9).clamp(0.0, 1.0)
    watercolour = torch.lerp(0.28 + 0.72 * torch.lerp(grey, pixels, 0.85), paper.expand_as(pixels), vignette)
    comic = _steps((grey + (pixels - grey) * 1.7).clamp(0.0, 1.0), 4)
    sepia = torch.lerp(pixels, grey * pixels.new_tensor([1.10, 0.92, 0.68]).reshape(1, 3, 1, 1), 0.70)
    sepia = sepia * (1.05 - 0.35 * vignette)
    choices = torch.stack([pixels, watercolour, comic, sepia])
    return choices[style, torch.arange(pixels.shape[0], device=pixels.device)].clamp(0.0, 1.0)


def _steps(values: Tensor, levels: int) -> Tensor:
    """Posterise to soft steps."""
    scaled = values * levels
    floor = scaled.floor()
    return (floor + ((scaled - floor - 0.5) * 4.0 + 0.5).clamp(0.0, 1.0)) / levels
