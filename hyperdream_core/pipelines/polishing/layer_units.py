"""The unit of each layer's coefficients: what, by chance, moves the layer's output by about its own size.

Two checkpoints may compute the same picture from projections of quite another size, say queries eight times as large
and keys an eighth. A step of so many thousandths is a leap for one layer then, and nothing for the next. So each layer
is measured where it works, on the base's own activations of the very picture that is polished on: with y the output
and h the input in the fresh adapter's r directions, squared and summed over all tokens, a change whose coefficients
are all 1 or -1, signed at random, adds an output of the squared size a * h (a columns of the basis, orthonormal), and

    unit = sqrt(y / (a * h))

makes that as large as y. The coefficients that are trained count in this unit: Adam moves each by the learning rate at
first, so that a step changes every layer's output by that share of itself. Scaling a layer's inputs by f and its
outputs by g scales its unit by g / f, just as the change that does the same to it: the trained coefficients, their
gradients, moments and clipping, penalties on them and their initial values are the same number by number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...bases import UNET
from ...bases.family import Layer
from ...models.output_probe import OutputProbe
from ...ops.lidb import basis_sizes
from ..base import Base
from .denoising_error import Prompts, Samples


@torch.no_grad()
def measure_units(
    base: Base,
    layers: Sequence[Layer],
    directions: Mapping[str, Tensor],
    up_dim: int,
    prompts: Prompts,
    samples: Samples,
    at_once: int,
) -> dict[str, Tensor]:
    """The unit of every layer for every row (subject), (rows,) float32 on the CPU.

    A layer that puts out nothing, or is never reached, takes the median of the others: what it needs nobody knows.

    Args:
        base: without adapters; nothing of it is changed.
        layers: to be measured.
        directions: layer name -> the fresh adapter's down factor (r, i).
        up_dim: basis size on the output side, before clipping.
        prompts: of the rows.
        samples: noisy pictures of the rows.
        at_once: samples of a row that share a forward pass.
    """
    rows, rank = len(samples.noisy), len(next(iter(directions.values())))
    probes = {
        layer.name: OutputProbe(directions[layer.name], directions[layer.name].new_zeros(layer.out_features, rank))
        for layer in layers
    }
    text = {name: probe for name, probe in probes.items() if base.family.part_of(name) != UNET}
    unet = {name: probe for name, probe in probes.items() if name not in text}
    if text:
        with base.adapted(text):
            base.encode_prompt(prompts.texts)
    with base.adapted(unet):
        for part in samples.split(at_once):
            tokens = prompts.conditioning[part.prompts.flatten()]
            base.predict(part.noisy.flatten(0, 1), part.t.repeat(rows), tokens)
    units = torch.stack([_unit(layer, probes[layer.name], up_dim, rows) for layer in layers])
    known = units.isfinite() & (units > 0)
    if not known.any():
        return {layer.name: torch.ones(rows) for layer in layers}
    units = torch.where(known, units, units[known].median())
    return dict(zip((layer.name for layer in layers), units.unbind(0), strict=True))


def _unit(layer: Layer, probe: OutputProbe, up_dim: int, rows: int) -> Tensor:
    """(rows,); not a number where there is nothing to go by."""
    if not probe.seen:
        return torch.full((rows,), torch.nan)
    outputs, inputs = (torch.stack([_by_row(seen[side], rows) for seen in probe.seen]).sum(0) for side in (0, 1))
    _, columns = basis_sizes(layer.in_features, layer.out_features, up_dim=up_dim)
    return (outputs / (columns * inputs)).sqrt()


def _by_row(norms: Tensor, rows: int) -> Tensor:
    """(rows,) of the samples' (b,); what is not of all rows counts for each."""
    return norms.cpu().unflatten(0, (rows, -1)).sum(-1) if len(norms) % rows == 0 else norms.cpu().sum().expand(rows)
