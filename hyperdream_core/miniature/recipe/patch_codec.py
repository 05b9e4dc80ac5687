"""A linear codec of picture patches, and the way it is written into a `diffusers.AutoencoderDC`.

The codec is solved for, not trained: half-whitened principal components. The encoder's network is exactly the codec.
The decoder's starts as its exact inverse and is trained on from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

PATCH = 8
"""Edge of a patch, px."""

MAIN_COMPONENTS = 16
"""The strongest components, which set the scale of the codes."""

_BIAS = 16.0
"""Value of the channel that carries a constant through the decoder. It rules the root mean square of its last
normalisation, which therefore divides all colours by nearly the same."""

_LIFT = 1.5
"""Added to colours, which lie in -1..1, before the decoder's last rectifier and subtracted after it."""

_START = 0.01
"""Weight of the decoder's residual blocks at the start: enough for a gradient, too little to be seen."""


@dataclass(frozen=True)
class PatchCodec:
    """code = (patch - mean) @ analysis; patch = mean + code @ synthesis. Patches are (c y x) in -1..1."""

    mean: Tensor  # (192,)
    analysis: Tensor  # (192, k)
    synthesis: Tensor  # (k, 192)


def solve_codec(pictures: Tensor, components: int) -> PatchCodec:
    """The codec of the pictures' patches.

    Each component is divided by the square root of its deviation: enough that the small ones count, not so much that
    all are alike, so that noise still hides fine structure first. The mean variance of the main ones is 1.

    Args:
        pictures: (n, 3, h, w) in -1..1.
        components: numbers in a code.
    """
    patches = rearrange(pictures.double(), "n c (h y) (w x) -> (n h w) (c y x)", y=PATCH, x=PATCH)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    values, vectors = values.flip(0)[:components], vectors.flip(1)[:, :components]
    vectors = vectors * vectors.sum(0).sign()  # LAPACK builds disagree on signs; this makes the result unique
    scale = values**0.25 * values[:MAIN_COMPONENTS].sqrt().mean().sqrt()
    return PatchCodec(patches.mean(0), vectors / scale, (vectors * scale).T)


@torch.no_grad()
def write_encoder_(encoder: Any, codec: PatchCodec) -> None:
    """Make the encoder of (3, 12, 48, 192) channels the codec: its shortcuts take pictures apart, its end projects."""
    for parameter in encoder.parameters():
        parameter.zero_()
    encoder.conv_in.weight[range(3), range(3), 1, 1] = 1.0
    # Three steps of space to depth: the first one takes the lowest bits of a pixel's place.
    bits = dict.fromkeys(("y2", "y1", "y0", "x2", "x1", "x0"), 2)
    places = "(c y2 y1 y0 x2 x1 x0) k -> k (c y0 x0 y1 x1 y2 x2)"
    encoder.conv_out.weight[:, :, 1, 1] = rearrange(codec.analysis, places, c=3, **bits).float()
    encoder.conv_out.bias.copy_(-(codec.mean @ codec.analysis).float())


@torch.no_grad()
def write_decoder_(decoder: Any, codec: PatchCodec) -> None:
    """Make the decoder the codec's inverse; what its residual blocks add stays small.

    A patch becomes four of half the edge, three times over. One channel after the colours is constant.
    """
    components = len(codec.synthesis)
    wanted = torch.eye(components, dtype=torch.double)
    repeats = len(decoder.conv_in.weight) // components
    _write_(decoder.conv_in, wanted, torch.zeros(components), repeats)
    decoder.conv_in.bias[components] = _BIAS
    _calm_blocks_(decoder.up_blocks[-1], components)

    channels, edge = components, PATCH
    source, offset = codec.synthesis.T, codec.mean
    for level in reversed(range(len(decoder.up_blocks) - 1)):
        grow, *blocks = decoder.up_blocks[level]
        edge //= 2
        quarters = rearrange(source, "(c y v x u) i -> (c v u) (y x) i", c=3, y=2, x=2, v=edge, u=edge)
        offsets = rearrange(offset, "(c y v x u) -> (c v u) (y x)", c=3, y=2, x=2, v=edge, u=edge)
        made = len(quarters)
        matrix = torch.zeros(made + 1, 4, channels + 1, dtype=torch.double)
        matrix[:made, :, :channels] = quarters
        matrix[made, :, channels] = 1.0  # hands the constant on
        bias = torch.cat([offsets, torch.zeros(1, 4)])
        _write_(grow.conv, matrix.flatten(0, 1), bias.flatten(), grow.repeats)
        _calm_blocks_(blocks, made)
        channels = made
        source = torch.eye(made, dtype=torch.double)
        offset = torch.full((made,), _LIFT if edge == 2 else 0.0, dtype=torch.double)

    decoder.norm_out.weight.fill_(1.0)
    decoder.norm_out.bias.zero_()
    mean_square = (_BIAS**2 + channels * (_LIFT**2 + 0.3)) / len(decoder.norm_out.weight)
    decoder.conv_out.weight.zero_()
    decoder.conv_out.weight[range(channels), range(channels), 1, 1] = mean_square**0.5
    decoder.conv_out.bias.fill_(-_LIFT)


def _write_(convolution: Any, matrix: Tensor, bias: Tensor, repeats: int) -> None:
    """Make a 3x3 convolution the matrix (o, i) and bias (o,), less its block's shortcut: each input `repeats` times.

    Rows and columns that the matrix lacks are 0: those channels stay empty, shortcut included.
    """
    outputs, inputs = convolution.weight.shape[:2]
    wanted = torch.zeros(outputs, inputs, dtype=torch.double)
    wanted[: matrix.shape[0], : matrix.shape[1]] = matrix
    wanted[torch.arange(outputs), torch.arange(outputs) // repeats] -= 1.0
    convolution.weight.zero_()
    convolution.weight[:, :, 1, 1] = wanted.float()
    convolution.bias.zero_()
    convolution.bias[: len(bias)] = bias.float()


def _calm_blocks_(blocks: Any, constant: int) -> None:
    """Residual blocks that start small and do not see the constant channel."""
    for block in blocks:
        block.conv1.weight[:, constant] = 0.0
        block.norm.weight.fill_(_START)
        block.norm.bias.zero_()
