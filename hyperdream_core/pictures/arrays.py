"""Pictures that a host hands over as numbers: any layout, depth and range to what a file would have given."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..errors import ReferenceImageError
from .files import WHITE, Picture, check_size

LARGEST_HIGHLIGHT = 16.0
"""Brightest value of a floating-point picture that is taken for a highlight; above it the scale is not 0..1."""


def picture_from_array(
    pixels: Tensor | np.ndarray, name: str = "picture", background: tuple[int, int, int] = WHITE
) -> Picture:
    """A picture from (h, w), or (h, w, c) with c of 1 to 4 as grey, grey and alpha, RGB or RGBA.

    Integers are scaled from their own range (8 or 16 bit), floats are 0..1 with highlights above clipped.

    Raises:
        ReferenceImageError: another shape or kind of numbers, too small, too large, not finite, or of another range.
    """
    values = torch.from_numpy(_as_known_kind(pixels)) if isinstance(pixels, np.ndarray) else pixels.detach().cpu()
    if values.dim() == 2:
        values = values.unsqueeze(-1)
    if values.dim() != 3 or values.shape[-1] not in (1, 2, 3, 4):
        raise ReferenceImageError(
            f"{name}: has shape {tuple(values.shape)}, expected (h, w) or (h, w, c) with c of 1 to 4; hand over one "
            "picture at a time, channels last"
        )
    height, width = values.shape[:2]
    check_size(name, width, height)
    values, notes = _in_unit_range(values, name)
    if values.shape[-1] in (2, 4):
        alpha = values[..., -1:]
        if bool((alpha < 1).any()):
            notes += (f"{name}: is transparent in places, where the background colour {background} shows",)
        values = values[..., :-1] * alpha + torch.tensor(background, dtype=torch.float32) / 255 * (1 - alpha)
    elif values.shape[-1] == 1:
        values = values.expand(-1, -1, 3)
    return Picture(rearrange(values, "h w c -> c h w").contiguous(), notes, name)


def _as_known_kind(pixels: np.ndarray) -> np.ndarray:
    # torch 2.1 knows neither uint16 nor foreign byte orders.
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2:
        return pixels.astype(np.float32) / 65535
    if pixels.dtype == np.bool_:
        return pixels.astype(np.float32)
    return np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("="), copy=False))


def _in_unit_range(values: Tensor, name: str) -> tuple[Tensor, tuple[str, ...]]:
    if values.dtype == torch.uint8:
        return values.float() / 255, ()
    if not values.is_floating_point():
        raise ReferenceImageError(
            f"{name}: holds numbers of type {values.dtype}, expected 8 or 16 bit or floats in 0..1; convert it"
        )
    values = values.float()
    low, high = float(values.min()), float(values.max())
    # Written so that NaN is refused as well.
    if not (low > -LARGEST_HIGHLIGHT and high <= LARGEST_HIGHLIGHT):
        raise ReferenceImageError(
            f"{name}: has values from {low:g} to {high:g}, expected 0 to 1 (highlights to {LARGEST_HIGHLIGHT:g}); "
            "scale it to 0..1"
        )
    # Half a step of 8 bit: what resampling filters leave behind is nobody's business.
    if low < -0.002 or high > 1.002:
        return values.clamp(0, 1), (f"{name}: values from {low:.2f} to {high:.2f} are clipped to 0..1",)
    return values.clamp(0, 1), ()
