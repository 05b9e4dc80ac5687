"""A canvas of soft-edged shapes: batches of pictures painted from signed distances.

Everything is a tensor with the picture index first, so a thousand different portraits are painted by
the same few operations. Coordinates run from -1 to 1, x to the right and y downwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Canvas:
    """A batch of pictures being painted, back to front."""

    pixels: Tensor  # (b, 3, h, w), 0..1

    @property
    def pixel(self) -> float:
        """Width of one pixel in canvas coordinates."""
        return 2.0 / self.pixels.shape[-1]

    def cover(self, distance: Tensor, softness: float = 1.0) -> Tensor:
        """Coverage 0..1 of a shape from its signed distance (b, h, w); edges blur over `softness` pixels."""
        return (0.5 - distance / (self.pixel * softness)).clamp_(0.0, 1.0)

    def paint(self, coverage: Tensor, colour: Tensor) -> None:
        """Lay `colour`, (b, 3) or (b, 3, h, w), over the picture where coverage (b, h, w) says so."""
        if colour.dim() == 2:
            colour = colour[:, :, None, None]
        self.pixels = torch.lerp(self.pixels, colour.expand_as(self.pixels), coverage.unsqueeze(1))

    def shade(self, coverage: Tensor, factor: Tensor | float) -> None:
        """Multiply the picture by `factor` where coverage (b, h, w) says so."""
        self.pixels = self.pixels * (1.0 + coverage.unsqueeze(1) * (as_column(factor, self.pixels) - 1.0))


def as_column(value: Tensor | float, like: Tensor) -> Tensor:
    """Shape a number or (b,) so that it broadcasts over (b, 3, h, w)."""
    if isinstance(value, float):
        return torch.as_tensor(value, dtype=like.dtype, device=like.device)
    return value.reshape(-1, 1, 1, 1)


def grid(size: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Pixel centres (1, h, w) of a square picture: x and y in -1..1."""
    axis = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) * (2.0 / size) - 1.0
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x.unsqueeze(0), y.unsqueeze(0)


def ellipse(x: Tensor, y: Tensor, radius_x: Tensor | float, radius_y: Tensor | float) -> Tensor:
    """Signed distance to an ellipse round the origin; exact at the edge to first order."""
    scaled = torch.sqrt((x / radius_x) ** 2 + (y / radius_y) ** 2 + 1e-8)
    if isinstance(radius_x, Tensor) or isinstance(radius_y, Tensor):
        smaller = torch.minimum(torch.as_tensor(radius_x), torch.as_tensor(radius_y))
    else:
        smaller = torch.tensor(min(radius_x, radius_y))
    return (scaled - 1.0) * smaller


def box(x: Tensor, y: Tensor, half_x: Tensor | float, half_y: Tensor | float, round_: float = 0.0) -> Tensor:
    """Signed distance to a box round the origin with corners rounded by `round_`."""
    dx, dy = x.abs() - half_x + round_, y.abs() - half_y + round_
    outside = torch.sqrt(dx.clamp(min=0.0) ** 2 + dy.clamp(min=0.0) ** 2 + 1e-12)
    return outside + torch.maximum(dx, dy).clamp(max=0.0) - round_


def arc(x: Tensor, y: Tensor, half: Tensor | float, bend: Tensor | float, thickness: Tensor | float) -> Tensor:
    """Signed distance to a stroke along y = bend · (1 - (x / half)²), tapering towards its ends."""
    along = (x / half).clamp(-1.0, 1.0)
    body = (y - bend * (1.0 - along**2)).abs() - thickness * (1.0 - 0.75 * along**2)
    return torch.maximum(body, x.abs() - half)


def hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Colours (b, 3) in RGB from hue, saturation and value (b,), all 0..1."""
    sector = torch.stack([(hue * 6.0 + offset) % 6.0 for offset in (5.0, 3.0, 1.0)], dim=-1)
    wave = torch.minimum(sector, 4.0 - sector).clamp(0.0, 1.0)
    return value.unsqueeze(-1) * (1.0 - saturation.unsqueeze(-1) * wave)


def palette(colours: list[tuple[float, float, float]], index: Tensor) -> Tensor:
    """Pick RGB colours (b, 3) by integer index (b,)."""
    return torch.tensor(colours, dtype=torch.float32, device=index.device)[index]


def blend(colours: list[tuple[float, float, float]], position: Tensor) -> Tensor:
    """Colours (b, 3) on a gradient through `colours` at position (b,) in 0..1."""
    table = torch.tensor(colours, dtype=torch.float32, device=position.device)
    place = position.clamp(0.0, 1.0) * (len(colours) - 1)
    low = place.floor().long().clamp(max=len(colours) - 2)
    return torch.lerp(table[low], table[low + 1], (place - low).unsqueeze(-1))
