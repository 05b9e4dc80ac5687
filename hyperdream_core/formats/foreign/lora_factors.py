"""The factors of a LoRA file of any program, layer by layer as the file names them, scaled as it says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...errors import FileFormatError, quoted
from ...ops.lowrank import LoraPair
from ..container import read_tensors
from .lora_names import is_never_read, part_of_lora
from .lora_scales import Scales

_WIDEST = 5
"""of a convolution's kernel in three factors"""


def parts_of_lora(path: Path, names: list[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Layer as the file has it -> part -> key of its tensor; and the keys that are no parts of what we read."""
    parts: dict[str, dict[str, str]] = {}
    left_out = []
    for name in names:
        found = part_of_lora(name)
        if found is None or is_never_read(name):
            left_out.append(name)
        elif found[1] in parts.setdefault(found[0], {}):
            raise FileFormatError(
                path,
                f"has two tensors for one factor, {quoted(parts[found[0]][found[1]], 120)} and {quoted(name, 120)}, "
                "and only one can be "
                "meant. Use a LoRA that was saved by one program.",
            )
        else:
            parts[found[0]][found[1]] = name
    factors = {layer: found for layer, found in parts.items() if set(found) != {"alpha"}}
    left_out += [found["alpha"] for layer, found in parts.items() if layer not in factors]
    if not factors:
        raise FileFormatError(
            path,
            f"holds no factor of a plain LoRA among its {len(names)} tensors, such as {quoted(names[0], 120)}. Use a "
            "plain "
            "LoRA file.",
        )
    return factors, left_out


def pairs_of_parts(path: Path, parts: Mapping[str, Mapping[str, str]], scales: Scales) -> dict[str, LoraPair]:
    """Layer as the file has it -> its pair, scale folded into `up`."""
    keys = [key for found in parts.values() for key in found.values()]
    alphas = {found["alpha"] for found in parts.values() if "alpha" in found}
    _, tensors = read_tensors(path, keys, alphas)
    layers = {}
    for layer, found in parts.items():
        for side in ("down", "up"):
            if side not in found:
                raise FileFormatError(path, f"lacks the {side} factor of {quoted(layer, 120)}. Get the file again.")
        down, is_wide = _down(path, layer, {side: tensors[key] for side, key in found.items()})
        up = _matrix(path, layer, "up", tensors[found["up"]])
        if down.shape[0] != up.shape[1]:
            raise FileFormatError(
                path,
                f"{quoted(layer, 120)} has down {tuple(down.shape)} and up {tuple(up.shape)}, whose ranks differ. "
                "Get it again.",
            )
        alpha = tensors[found["alpha"]] if "alpha" in found else None
        if alpha is not None and alpha.numel() != 1:
            raise FileFormatError(
                path, f"{quoted(layer, 120)} has an alpha that is not one number. Get the file again."
            )
        scale = scales.of(layer, down.shape[0], None if alpha is None else float(alpha), is_wide)
        if not bool(torch.isfinite(up * scale).all()):
            raise FileFormatError(
                path, f"{quoted(layer, 120)} is scaled beyond all numbers by its alpha. Get the file again."
            )
        layers[layer] = LoraPair(down, up * scale)
    return layers


def _down(path: Path, layer: str, tensors: Mapping[str, Tensor]) -> tuple[Tensor, bool]:
    """The first factor (r, i), with a kernel of its own multiplied in, and whether its kernel is wider than 1x1."""
    down, middle = tensors["down"], tensors.get("mid")
    if middle is not None:
        narrow = _matrix(path, layer, "down", down)
        rank = narrow.shape[0]
        # Square in the ranks and of a small kernel, so that multiplying it in cannot make much of a little.
        if (
            middle.dim() != 4
            or middle.shape[:2] != (rank, rank)
            or not all(1 <= k <= _WIDEST for k in middle.shape[2:])
        ):
            raise FileFormatError(
                path,
                f"{quoted(layer, 120)} has a middle factor of shape {tuple(middle.shape)}, which does not fit. Get "
                "it again.",
            )
        down = torch.einsum("rshw,si->rihw", middle.float(), narrow)
    is_wide = down.dim() == 4 and down.shape[2:] != (1, 1)
    return _matrix(path, layer, "down", down), is_wide


def _matrix(path: Path, layer: str, side: str, factor: Tensor) -> Tensor:
    """A factor as a matrix; a convolution's kernel is flattened into its inputs."""
    is_convolution = factor.dim() == 4 and (side == "down" or factor.shape[2:] == (1, 1))
    if (factor.dim() != 2 and not is_convolution) or 0 in factor.shape:
        raise FileFormatError(
            path,
            f"{quoted(layer, 120)} has a {side} factor of shape {tuple(factor.shape)}, but a matrix is expected. Get "
            "it again.",
        )
    return factor.float().flatten(1)
