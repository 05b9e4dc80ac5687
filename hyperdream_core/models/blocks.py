"""Blocks of which the trained models are made: residual convolutions and pre-norm attention."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

GROUPS = 8
"""GroupNorm groups of the residual blocks; their channel counts are multiples of it."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a skip, (b, c, h, w) -> (b, channels_out, h / stride, w / stride)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.norm1 = nn.GroupNorm(GROUPS, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1)
        self.norm2 = nn.GroupNorm(GROUPS, channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1)
        self.skip = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(functional.silu(self.norm1(x)))
        hidden = self.conv2(functional.silu(self.norm2(hidden)))
        if self.stride > 1:
            x = functional.avg_pool2d(x, self.stride)
        return self.skip(x) + hidden


class GridPooling(nn.Module):
    """One vector from the tokens of a grid, (b, n, d) -> (b, d), that knows which token lies where.

    Each token is narrowed to a few channels and all of them are read side by side. Pooling that weighs tokens but
    forgets their place saw hair and skin and missed the shape of a face: after 500 steps of pretraining it explained
    0.13 of the variance of the miniature's identity parameters, this explains 0.43.
    """

    def __init__(self, tokens: int, width: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.narrow = nn.Linear(width, channels)
        self.out = nn.Linear(tokens * channels, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(functional.silu(self.narrow(self.norm(tokens))).flatten(1))


class Attention(nn.Module):
    """Multi-head attention of tokens (b, n, d) on themselves or on a memory projected once for many calls."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (b, head, n, d / head) of a memory (b, n, d)."""
        both = rearrange(self.key_value(memory), "b n (two head d) -> two b head n d", two=2, head=self.heads)
        return both[0], both[1]

    def forward(self, x: Tensor, memory: tuple[Tensor, Tensor] | None = None) -> Tensor:
        keys, values = self.project(x) if memory is None else memory
        queries = rearrange(self.query(x), "b n (head d) -> b head n d", head=self.heads)
        mixed = functional.scaled_dot_product_attention(queries, keys, values)
        return self.out(rearrange(mixed, "b head n d -> b n (head d)"))


class DecoderBlock(nn.Module):
    """Self-attention, cross-attention on a projected memory and a feed-forward, each pre-norm and residual."""

    def __init__(self, width: int, heads: int, feed_forward_ratio: int) -> None:
        super().__init__()
        self.norm_self = nn.LayerNorm(width)
        self.attend_self = Attention(width, heads)
        self.norm_memory = nn.LayerNorm(width)
        self.attend_memory = Attention(width, heads)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, feed_forward_ratio * width),
            nn.GELU(),
            nn.Linear(feed_forward_ratio * width, width),
        )

    def forward(self, x: Tensor, memory: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.attend_self(self.norm_self(x))
        x = x + self.attend_memory(self.norm_memory(x), memory)
        return x + self.feed_forward(x)
