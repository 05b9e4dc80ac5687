"""A transformer decoder over one weight token per target layer, refining codes for all layers in several passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from ..errors import ConfigError
from .blocks import DecoderBlock
from .image_encoder import ImageFeatures

HEADS_PER = ("layer", "shape")
HEAD_STD = 1e-2
"""Start of the output heads, small but not zero: advice of its author (docs/methods.md, "Hypernetwork")."""
CODE_SCALE = 0.1
"""Codes are this times what the heads put out. An optimiser that moves every weight by its rate moves all inputs of a
head at once, and at 1 a code by more than its final size within a few steps: the miniature's loss doubled by step
100 and needed as many again to come back."""
POOLED_STD = 0.2
"""Start of the pooled feature's projection: in a token it must not drown beside the layer's embedding."""


@dataclass(frozen=True, order=True)
class CodeShape:
    """How one layer's code lies in its token's output: down (r, p), then up (a, r)."""

    down_dim: int
    up_dim: int
    rank: int
    layer_sizes: tuple[int, ...] = ()
    """Tells layers apart whose codes are alike, so that they get different groups."""

    @property
    def size(self) -> int:
        return self.rank * (self.down_dim + self.up_dim)

    def split(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """(..., size) -> down (..., r, p) and up (..., a, r)."""
        down, up = code.split([self.rank * self.down_dim, self.rank * self.up_dim], dim=-1)
        return (
            rearrange(down, "... (r p) -> ... r p", r=self.rank),
            rearrange(up, "... (a r) -> ... a r", r=self.rank),
        )


@dataclass(frozen=True)
class CodeGroup:
    """Layers of one shape, whose heads run as one product: positions start..stop of the weight tokens."""

    start: int
    stop: int
    shape: CodeShape

    @property
    def layers(self) -> int:
        return self.stop - self.start


class GroupedLinear(nn.Module):
    """One matrix per layer of a group, (b, n, d) -> (b, n, o) with n layers, or one matrix shared by all of them."""

    def __init__(self, layers: int, width_in: int, width_out: int, std: float, is_shared: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1 if is_shared else layers, width_in, width_out) * std)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.shape[0] == 1:
            return torch.matmul(x, self.weight[0])
        return torch.bmm(x.transpose(0, 1), self.weight).transpose(0, 1)


class WeightDecoder(nn.Module):
    """Image features in, one code per layer out: theta_k = theta_(k-1) + T(features, theta_(k-1)), from zero.

    A weight token is its layer's embedding plus the pooled image feature plus, if `feedback`, a projection of the
    layer's current code. The pooled feature is in every token because without it the codes barely came to depend on
    the picture. Without feedback the tokens of one pass are what the next starts from.

    Args:
        shapes: of each layer, in the order of the weight tokens; neighbours of equal shape form a group.
        features_width: of the image tokens and the pooled feature.
        heads_per: "layer", or "shape" for one head for all layers of a shape.

    Source: HyperDreamBooth, arXiv:2307.06949, "HyperNetwork"; the sizes are ours.
    """

    def __init__(
        self,
        shapes: Sequence[CodeShape],
        features_width: int,
        *,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        feed_forward_ratio: int = 2,
        heads_per: str = "layer",
        feedback: bool = True,
    ) -> None:
        super().__init__()
        if heads_per not in HEADS_PER or width % heads:
            raise ConfigError(
                f"heads_per must be one of {', '.join(HEADS_PER)} and width a multiple of heads; "
                f"got {heads_per!r}, {width} / {heads}"
            )
        self.groups = _code_groups(shapes)
        is_shared = heads_per == "shape"
        self.embedding = nn.Parameter(torch.randn(len(shapes), width) * 0.5)
        self.from_tokens = nn.Sequential(nn.LayerNorm(features_width), nn.Linear(features_width, width))
        self.from_pooled = nn.Sequential(nn.LayerNorm(features_width), nn.Linear(features_width, width))
        nn.init.normal_(cast(nn.Linear, self.from_pooled[1]).weight, std=POOLED_STD * (128 / features_width) ** 0.5)
        self.blocks = nn.ModuleList(DecoderBlock(width, heads, feed_forward_ratio) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(
            GroupedLinear(group.layers, width, group.shape.size, HEAD_STD, is_shared) for group in self.groups
        )
        self.feedback = nn.ModuleList(
            GroupedLinear(group.layers, group.shape.size, width, group.shape.size**-0.5, is_shared)
            for group in self.groups
            if feedback
        )

    def forward(self, features: ImageFeatures, refine_steps: int) -> list[Tensor]:
        """One code tensor (b, layers of the group, size) per group after `refine_steps` passes."""
        memory = self.from_tokens(features.tokens)
        # The image does not change between passes, and so its keys and values are projected once.
        blocks = [cast(DecoderBlock, block) for block in self.blocks]
        memories = [block.attend_memory.project(memory) for block in blocks]
        start = self.embedding + self.from_pooled(features.pooled)[:, None]
        tokens, codes = start, [start.new_zeros(())] * len(self.groups)
        for step in range(refine_steps):
            if step and self.feedback:
                tokens = start + torch.cat(
                    [project(code) for project, code in zip(self.feedback, codes, strict=True)], dim=1
                )
            elif step:
                tokens = start + tokens
            for block, projected in zip(blocks, memories, strict=True):
                tokens = block(tokens, projected)
            tokens = self.norm(tokens)
            codes = [
                code + CODE_SCALE * head(tokens[:, group.start : group.stop])
                for code, head, group in zip(codes, self.heads, self.groups, strict=True)
            ]
        return codes


def _code_groups(shapes: Sequence[CodeShape]) -> list[CodeGroup]:
    groups: list[CodeGroup] = []
    for shape, members in groupby(shapes):
        start = groups[-1].stop if groups else 0
        groups.append(CodeGroup(start, start + len(list(members)), shape))
    return groups
