"""How a subject is seen: turn, tilt, framing, light and occlusion, which no caption names."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class View:
    """How a subject is seen; (b,) each. Zero everywhere is the straight portrait."""

    turn: Tensor  # -1..1, right is positive
    tilt: Tensor  # radians
    zoom: Tensor  # factor minus one
    shift_x: Tensor  # canvas units
    shift_y: Tensor
    light: Tensor  # (b, 2): direction -1..1 and strength 0..1
    occlusion: Tensor  # 0..1: share of the face that a bar hides from below
    mood: Tensor  # (b, 4): background light and place, clothes, accessory colour, 0..1


def random_view(count: int, generator: torch.Generator, spread: float = 1.0) -> View:
    """Small natural variation of the view; `spread` scales it, 0 gives the straight portrait."""

    def noise(*shape: int) -> Tensor:
        return (torch.rand(count, *shape, generator=generator) * 2.0 - 1.0) * spread

    light = torch.stack([noise(), 0.25 + 0.2 * noise()], dim=-1)
    mood = (noise(4) + 1.0) / 2.0
    return View(0.35 * noise(), 0.07 * noise(), 0.05 * noise(), 0.04 * noise(), 0.03 * noise(), light,
                torch.zeros(count), mood)  # fmt: skip


def seen(x: Tensor, y: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """Head coordinates (b, h, w) of the picture's points under a view."""
    cos, sin = torch.cos(view.tilt).reshape(-1, 1, 1), torch.sin(view.tilt).reshape(-1, 1, 1)
    zoom = 1.0 + view.zoom.reshape(-1, 1, 1)
    x, y = (x - view.shift_x.reshape(-1, 1, 1)) / zoom, (y - view.shift_y.reshape(-1, 1, 1)) / zoom
    return cos * x + sin * y, cos * y - sin * x
