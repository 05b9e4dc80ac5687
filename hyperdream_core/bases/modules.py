"""Every linear layer and convolution of a base that a LoRA of any program may change, with its size.

Identities change the layers of a target set (`family.py`). LoRAs of other programs also change the feed-forwards'
second layers, the projections around transformer blocks, residual layers, resamplers and the text encoders' MLPs. The
layers that read the noise level, size and pooled text (`time_embedding`, `add_embedding`) are not among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from .family import BaseFamily, TextEncoderShape, UNetShape

_KERNEL = 9
"""numbers that a 3x3 convolution reads of each channel"""


@dataclass(frozen=True)
class Module:
    """One layer; a convolution's inputs are its channels times its kernel."""

    name: str
    """canonical: diffusers' path, text encoders with their prefix"""
    inputs: int
    outputs: int


@lru_cache(maxsize=16)
def modules(family: BaseFamily) -> dict[str, Module]:
    """All of them by canonical name, the layers of the target sets among them."""
    found = [Module(layer.name, layer.in_features, layer.out_features) for layer in family.layers("attention+geglu")]
    found += _unet_modules(family.unet, family.latent_channels)
    for encoder in family.text_encoders:
        found += _text_modules(encoder)
    return {module.name: module for module in found}


def _unet_modules(unet: UNetShape, latent_channels: int) -> Iterator[Module]:
    first, last = unet.channels[0], len(unet.channels) - 1
    yield Module("conv_in", latent_channels * _KERNEL, first)
    yield Module("conv_out", first * _KERNEL, latent_channels)
    levels = list(zip(unet.channels, unet.transformer_depth, strict=True))
    before = first
    for index, (width, depth) in enumerate(levels):
        block = f"down_blocks.{index}"
        for layer in range(unet.layers_per_block):
            yield from _residual(f"{block}.resnets.{layer}", before, width, first)
            yield from _transformer(f"{block}.attentions.{layer}", width, depth)
            before = width
        if index < last:
            yield Module(f"{block}.downsamplers.0.conv", width * _KERNEL, width)
    for layer in (0, 1):
        yield from _residual(f"mid_block.resnets.{layer}", before, before, first)
    yield from _transformer("mid_block.attentions.0", before, unet.middle_depth)
    for index, (width, depth) in enumerate(reversed(levels)):
        block = f"up_blocks.{index}"
        # What comes over from the way down: of this level, and at last of the next finer one.
        finer = unet.channels[max(last - index - 1, 0)]
        for layer in range(unet.layers_per_block + 1):
            over = finer if layer == unet.layers_per_block else width
            yield from _residual(f"{block}.resnets.{layer}", before + over, width, first)
            yield from _transformer(f"{block}.attentions.{layer}", width, depth)
            before = width
        if index < last:
            yield Module(f"{block}.upsamplers.0.conv", width * _KERNEL, width)


def _residual(path: str, inputs: int, outputs: int, first: int) -> Iterator[Module]:
    yield Module(f"{path}.conv1", inputs * _KERNEL, outputs)
    yield Module(f"{path}.conv2", outputs * _KERNEL, outputs)
    # The noise level is embedded in four times the first level's channels.
    yield Module(f"{path}.time_emb_proj", 4 * first, outputs)
    if inputs != outputs:
        yield Module(f"{path}.conv_shortcut", inputs, outputs)


def _transformer(path: str, width: int, depth: int) -> Iterator[Module]:
    if depth:
        # Linear layers in SD 2.x and SDXL, 1x1 convolutions in SD 1.x: the same numbers.
        yield Module(f"{path}.proj_in", width, width)
        yield Module(f"{path}.proj_out", width, width)
    for index in range(depth):
        yield Module(f"{path}.transformer_blocks.{index}.ff.net.2", 4 * width, width)


def _text_modules(encoder: TextEncoderShape) -> Iterator[Module]:
    for index in range(encoder.layers):
        path = f"{encoder.name}.text_model.encoder.layers.{index}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield Module(f"{path}.self_attn.{projection}", encoder.width, encoder.width)
        yield Module(f"{path}.mlp.fc1", encoder.width, 4 * encoder.width)
        yield Module(f"{path}.mlp.fc2", 4 * encoder.width, encoder.width)
