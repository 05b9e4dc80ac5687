"""The miniature's VAE in plain torch, because ComfyUI comes without diffusers, and Forge with an older one.

The same layers under the same names as a `diffusers.AutoencoderDC` without attention, so that it takes those weights as
they are: residual blocks, and steps between space and depth instead of strides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPSILON = 1e-5


class SmallAutoencoder(nn.Module):
    """Pictures in -1..1 to latents, not scaled, and back.

    Args:
        latent_channels: c.
        encoder: widths and numbers of residual blocks of the encoder's levels, the first at the pictures' size.
        decoder: of the decoder's levels likewise.
    """

    def __init__(
        self,
        latent_channels: int,
        encoder: tuple[Sequence[int], Sequence[int]],
        decoder: tuple[Sequence[int], Sequence[int]],
    ) -> None:
        super().__init__()
        self.encoder = _Encoder(latent_channels, *encoder)
        self.decoder = _Decoder(latent_channels, *decoder)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> SmallAutoencoder:
        """The one that a diffusers configuration describes; without its weights."""
        encoder, decoder = (
            (settings[f"{part}_block_out_channels"], settings[f"{part}_layers_per_block"])
            for part in ("encoder", "decoder")
        )
        return cls(int(settings["latent_channels"]), encoder, decoder)

    def encode(self, pictures: Tensor) -> Tensor:
        """(b, 3, h, w) to (b, c, h / f, w / f)."""
        latents: Tensor = self.encoder(pictures)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """(b, c, h / f, w / f) to (b, 3, h, w)."""
        pictures: Tensor = self.decoder(latents)
        return pictures


class LikeDiffusers(nn.Module):
    """The same in the words of a `diffusers.AutoencoderDC`.

    Args:
        inner: with its weights.
        scaling_factor: of its latents.
    """

    def __init__(self, inner: SmallAutoencoder, scaling_factor: float) -> None:
        super().__init__()
        self.inner = inner
        self.config = SimpleNamespace(scaling_factor=scaling_factor)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def encode(self, pictures: Tensor) -> dict[str, Tensor]:
        """The latents (b, c, h / f, w / f) of pictures (b, 3, h, w) in -1..1, under their name."""
        return {"latent": self.inner.encode(pictures)}

    def decode(self, latents: Tensor) -> SimpleNamespace:
        """The pictures of latents as `sample`."""
        return SimpleNamespace(sample=self.inner.decode(latents))


class _Encoder(nn.Module):
    def __init__(self, latent_channels: int, widths: Sequence[int], layers: Sequence[int]) -> None:
        super().__init__()
        self.conv_in = _convolution(3, widths[0])
        levels = _levels(widths, layers, _Shrink)
        self.down_blocks = nn.ModuleList(nn.Sequential(*blocks, *step) for blocks, step in levels)
        self.conv_out = _convolution(widths[-1], latent_channels)

    def forward(self, pictures: Tensor) -> Tensor:
        maps = self.conv_in(pictures)
        for block in self.down_blocks:
            maps = block(maps)
        latents: Tensor = self.conv_out(maps)
        return latents


class _Decoder(nn.Module):
    def __init__(self, latent_channels: int, widths: Sequence[int], layers: Sequence[int]) -> None:
        super().__init__()
        self.conv_in = _convolution(latent_channels, widths[-1])
        levels = _levels(widths, layers, _Grow)
        self.up_blocks = nn.ModuleList(nn.Sequential(*step, *blocks) for blocks, step in levels)
        self.norm_out = _ChannelNorm(widths[0])
        self.conv_out = _convolution(widths[0], 3)

    def forward(self, latents: Tensor) -> Tensor:
        maps = self.conv_in(latents)
        maps = maps + _repeated(latents, maps.shape[1])
        for block in reversed(self.up_blocks):
            maps = block(maps)
        pictures: Tensor = self.conv_out(F.relu(self.norm_out(maps)))
        return pictures


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _convolution(width, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = _ChannelNorm(width)

    def forward(self, maps: Tensor) -> Tensor:
        change: Tensor = self.norm(self.conv2(F.silu(self.conv1(maps))))
        return maps + change


class _Shrink(nn.Module):
    """To the next level, half the edge: what a convolution finds, beside the input with neighbours averaged."""

    def __init__(self, width: int, wider: int) -> None:
        super().__init__()
        self.conv = _convolution(width, wider // 4)
        self.wider = wider

    def forward(self, maps: Tensor) -> Tensor:
        shortcut = F.pixel_unshuffle(maps, 2).unflatten(1, (self.wider, -1)).mean(2)
        return F.pixel_unshuffle(self.conv(maps), 2) + shortcut


class _Grow(nn.Module):
    """From the next level, twice the edge: what a convolution finds, beside the input itself with channels repeated."""

    def __init__(self, width: int, wider: int) -> None:
        super().__init__()
        self.conv = _convolution(wider, 4 * width)

    def forward(self, maps: Tensor) -> Tensor:
        found = self.conv(maps)
        return F.pixel_shuffle(found + _repeated(maps, found.shape[1]), 2)


class _ChannelNorm(nn.Module):
    """Each position's channels by their root mean square, then a weight and a bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, maps: Tensor) -> Tensor:
        normed = maps * torch.rsqrt(maps.square().mean(1, keepdim=True) + _EPSILON)
        return normed * self.weight[:, None, None] + self.bias[:, None, None]


def _levels(
    widths: Sequence[int], layers: Sequence[int], step: Callable[[int, int], nn.Module]
) -> Iterator[tuple[list[nn.Module], list[nn.Module]]]:
    """The residual blocks of each level, and its step between itself and the next; the last has none."""
    for width, wider, count in zip(widths, [*widths[1:], 0], layers, strict=True):
        yield [_Residual(width) for _ in range(count)], [step(width, wider)] if wider else []


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _repeated(maps: Tensor, channels: int) -> Tensor:
    """Each channel as often as makes so many of them."""
    return maps.repeat_interleave(channels // maps.shape[1], dim=1)
