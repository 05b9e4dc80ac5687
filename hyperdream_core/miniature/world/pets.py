"""Procedural pets, the second kind of subject: cats and dogs of many coats, in the same contexts as people."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ...bases.miniature import MINIATURE
from .canvas import Canvas, arc, box, ellipse, grid, palette
from .captions import Context
from .scenery import HeadFrame, apply_style, paint_accessories, paint_background
from .view import View, seen

TRAITS = ("width", "length", "ear_size", "ear_spread", "eye_size", "eye_spacing", "muzzle", "patch_x", "patch_size",
          "coat_shade", "tilt")  # fmt: skip
COATS = [(0.16, 0.15, 0.16), (0.45, 0.28, 0.15), (0.86, 0.55, 0.22), (0.62, 0.62, 0.66), (0.95, 0.92, 0.86)]
EYES = [(0.30, 0.18, 0.08), (0.85, 0.62, 0.12), (0.35, 0.62, 0.25), (0.25, 0.55, 0.85)]
EARS = ("pointed", "floppy", "round")


@dataclass(frozen=True)
class Pets:
    """Identity parameters of a batch of pets."""

    traits: Tensor  # (b, len(TRAITS)), 0..1
    ears: Tensor  # (b,), index
    coat: Tensor
    patch: Tensor
    eye_colour: Tensor

    def __len__(self) -> int:
        return int(self.traits.shape[0])

    def __getitem__(self, index: Tensor | slice) -> Pets:
        return Pets(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def trait(self, name: str, low: float = 0.0, high: float = 1.0) -> Tensor:
        """One trait scaled to low..high, as (b, 1, 1)."""
        return (low + (high - low) * self.traits[:, TRAITS.index(name)]).reshape(-1, 1, 1)


def random_pets(count: int, generator: torch.Generator) -> Pets:
    """Pets drawn independently and uniformly."""

    def choose(options: int) -> Tensor:
        return torch.randint(options, (count,), generator=generator)

    traits = torch.rand(count, len(TRAITS), generator=generator)
    return Pets(traits, choose(len(EARS)), choose(len(COATS)), choose(len(COATS)), choose(len(EYES)))


def render_pets(pets: Pets, context: Context, view: View, size: int = MINIATURE.picture_size) -> Tensor:
    """Paint pets: (b,) each of pets, context and view to pictures (b, 3, size, size), 0..1."""
    raw_x, raw_y = grid(size, pets.traits.device)
    canvas = Canvas(torch.ones(len(pets), 3, size, size, device=pets.traits.device))
    paint_background(canvas, raw_x, raw_y, context.background, view.mood)
    x, y = seen(raw_x, raw_y, view)
    shade = pets.trait("coat_shade", 0.8, 1.15).reshape(-1, 1)
    coat, patch = (palette(COATS, index) * shade for index in (pets.coat, pets.patch))
    frame = HeadFrame(
        half_width=pets.trait("width", 0.44, 0.56),
        top=-pets.trait("length", 0.44, 0.54),
        chin=pets.trait("length", 0.44, 0.54),
        eye_height=torch.full_like(x[:, :1, :1], -0.08),
        eye_spacing=pets.trait("eye_spacing", 0.17, 0.25),
        face_x=0.16 * view.turn.reshape(-1, 1, 1),
    )
    _ears(canvas, x, y, pets, frame, coat)
    canvas.paint(canvas.cover(ellipse(x, y - frame.chin - 0.50, 0.62, 0.62)), coat * 0.9)
    head = ellipse(x, y, frame.half_width, frame.chin)
    canvas.paint(canvas.cover(head), coat)
    patch_x = x - pets.trait("patch_x", -0.3, 0.3) - frame.face_x
    spot = torch.maximum(ellipse(patch_x, y + 0.16, pets.trait("patch_size", 0.12, 0.34), 0.3), head)
    canvas.paint(canvas.cover(spot, 3.0), patch)
    canvas.shade(((head + 0.16) / 0.16).clamp(0.0, 1.0) ** 2 * canvas.cover(head), 0.82)
    _face(canvas, x - frame.face_x, y, pets, context, coat, frame)
    paint_accessories(canvas, x, y, frame, context.accessory, view.mood[:, 3])
    lit = 1.0 + view.light[:, 1].reshape(-1, 1, 1) * (view.light[:, 0].reshape(-1, 1, 1) * x * 0.8).clamp(-0.6, 0.6)
    return apply_style((canvas.pixels * lit.unsqueeze(1)).clamp(0.0, 1.0), context.style)


def _ears(canvas: Canvas, x: Tensor, y: Tensor, pets: Pets, frame: HeadFrame, coat: Tensor) -> None:
    size, spread = pets.trait("ear_size", 0.8, 1.25), pets.trait("ear_spread", 0.6, 0.85)
    pink = torch.tensor([0.90, 0.62, 0.60]).expand(len(pets), 3)
    kinds = [(pets.ears == index).float().reshape(-1, 1, 1) for index in range(len(EARS))]
    for side in (-1.0, 1.0):
        ear_x, ear_y = x - side * frame.half_width * spread, y - frame.top * 0.72
        slope = torch.maximum(ear_x.abs() * 1.9 / size - ear_y - 0.42, ear_y - 0.3)
        canvas.paint(canvas.cover(slope * 0.6) * kinds[0], coat * 0.92)
        canvas.paint(canvas.cover(slope * 0.6 + 0.07) * kinds[0], pink)
        flop = box(x - side * (frame.half_width + 0.02), y + 0.05, 0.14 * size, 0.34 * size, 0.13)
        canvas.paint(canvas.cover(flop) * kinds[1], coat * 0.68)
        disc = ellipse(ear_x, ear_y + 0.10, 0.18 * size, 0.18 * size)
        canvas.paint(canvas.cover(disc) * kinds[2], coat * 0.9)
        canvas.paint(canvas.cover(disc + 0.07) * kinds[2], pink)


def _face(canvas: Canvas, x: Tensor, y: Tensor, pets: Pets, context: Context, coat: Tensor, frame: HeadFrame) -> None:
    calm, smiling, sad, surprised = ((context.expression == i).float().reshape(-1, 1, 1) for i in range(4))
    ink = torch.full((len(pets), 3), 0.07)
    white = torch.full((len(pets), 3), 0.97)
    muzzle = pets.trait("muzzle", 0.17, 0.27)
    canvas.paint(canvas.cover(ellipse(x, y - 0.20, muzzle, 0.17), 2.0), coat * 0.35 + 0.62)
    radius = pets.trait("eye_size", 0.085, 0.115)
    openness = calm + 0.75 * smiling + 0.8 * sad + 1.35 * surprised
    for side in (-1.0, 1.0):
        eye_x, eye_y = x - side * frame.eye_spacing, y - frame.eye_height
        eye_y = eye_y + side * eye_x * (pets.trait("tilt", -0.25, 0.25) + 0.3 * sad)
        shape = canvas.cover(ellipse(eye_x, eye_y, radius, radius * 0.9 * openness))
        canvas.paint(canvas.cover(ellipse(eye_x, eye_y, radius + 0.022, radius * 0.9 * openness + 0.022)), ink)
        canvas.paint(shape, palette(EYES, pets.eye_colour))
        canvas.paint(canvas.cover(ellipse(eye_x, eye_y, radius * 0.5, radius * 0.75)) * shape, ink)
        canvas.paint(canvas.cover(ellipse(eye_x - 0.025, eye_y + 0.03, 0.022, 0.022)) * shape, white)
        brow = arc(eye_x, eye_y + 0.15 + 0.08 * surprised + side * eye_x * 0.35 * sad, 0.09, -0.02, 0.018)
        canvas.paint(canvas.cover(brow) * (sad + surprised), coat * 0.4)
    canvas.paint(canvas.cover(ellipse(x, y - 0.13, 0.065, 0.045)), ink)
    bend = 0.01 * calm + 0.085 * smiling - 0.07 * sad
    canvas.paint(canvas.cover(arc(x, y - 0.255 + 0.4 * bend, 0.15, bend, 0.02)) * (1.0 - surprised), ink)
    canvas.paint(canvas.cover(ellipse(x, y - 0.27, 0.055, 0.07)) * surprised, ink)
