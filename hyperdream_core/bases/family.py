"""A base model family as data: which linear layers can be adapted, what they are called and how large they are.

Layer names are canonical: diffusers module paths, without a prefix for the UNet, and with `text_encoder.` or
`text_encoder_2.` for text encoders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from ..errors import ConfigError

TARGET_SETS = ("attention", "attention+geglu", "attention+geglu+text")
"""What an adapter may change, each set a prefix of the next: self- and cross-attention of the UNet; also its GEGLU
projections; also the attention of the text encoders. The last is the paper's, 192 linears for SD 1.5."""

UNET = "unet"
"""The part, in `BaseFamily.part_of`, whose layers have no prefix; the others are text encoders."""


@dataclass(frozen=True)
class Layer:
    """One linear layer."""

    name: str
    in_features: int
    out_features: int


@dataclass(frozen=True, kw_only=True)
class UNetShape:
    """The block structure of a Stable Diffusion UNet, in the words of diffusers' configuration."""

    channels: tuple[int, ...]
    """Channels of each block (`block_out_channels`)."""
    transformer_depth: tuple[int, ...]
    """Transformer blocks per attention of each block, 0 where the block is purely convolutional."""
    context_dim: int
    """Width of the text tokens (`cross_attention_dim`)."""
    layers_per_block: int = 2
    """Residual layers of each down block; an up block has one more."""
    middle_depth: int = 1
    """Transformer blocks of the middle block's attention."""


@dataclass(frozen=True, kw_only=True)
class TextEncoderShape:
    """One CLIP text encoder."""

    name: str
    """`text_encoder` or `text_encoder_2`."""
    width: int
    layers: int
    ldm_prefix: str
    """Path of the module in a single-file checkpoint."""
    is_open_clip: bool = False
    """Whether that module is an OpenCLIP one, with q, k and v fused into one matrix."""


@dataclass(frozen=True, kw_only=True)
class BaseFamily:
    """What all checkpoints of one architecture have in common."""

    name: str
    """As in file metadata: sd15, sd2, sdxl, miniature."""
    title: str
    """As in messages."""
    unet: UNetShape
    text_encoders: tuple[TextEncoderShape, ...]
    picture_size: int
    """Side of the pictures it was trained on, px."""
    prediction_types: tuple[str, ...]
    """What checkpoints of the family predict, the usual one first, in diffusers' words."""
    ss_base_model_version: str
    """kohya's name of the family, in LoRA metadata."""
    modelspec_architecture: str
    """The model specification's name of a LoRA for the family."""
    latent_channels: int = 4
    vae_factor: int = 8
    """Pixels per latent, each way."""
    scaling_factor: float = 0.18215
    """Latents are multiplied by this to have unit variance."""

    def layers(self, target_set: str = "attention") -> tuple[Layer, ...]:
        """The layers of a target set, in the order that files and digests use."""
        if target_set not in TARGET_SETS:
            raise ConfigError(f"unknown target set {target_set!r}; known: {', '.join(TARGET_SETS)}")
        return _layers(self, target_set)

    def part_of(self, layer: str) -> str:
        """Which network a layer lies in, by its canonical name: `unet`, `text_encoder` or `text_encoder_2`."""
        return next((one.name for one in self.text_encoders if layer.startswith(f"{one.name}.")), UNET)

    def layers_digest(self, target_set: str = "attention") -> str:
        """SHA-256 (hex) over the names and sizes of a target set's layers, in order."""
        lines = [f"{layer.name} {layer.in_features} {layer.out_features}\n" for layer in self.layers(target_set)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


@lru_cache(maxsize=32)
def _layers(family: BaseFamily, target_set: str) -> tuple[Layer, ...]:
    layers = list(unet_attention_layers(family.unet))
    if target_set != "attention":
        layers += unet_geglu_layers(family.unet)
    if target_set == "attention+geglu+text":
        for encoder in family.text_encoders:
            layers += text_attention_layers(encoder)
    return tuple(layers)


def unet_attention_layers(unet: UNetShape) -> Iterator[Layer]:
    """The q, k, v and output projections of every self-attention (attn1) and cross-attention (attn2)."""
    for block, width in _transformer_blocks(unet):
        for attention, source in (("attn1", width), ("attn2", unet.context_dim)):
            yield Layer(f"{block}.{attention}.to_q", width, width)
            yield Layer(f"{block}.{attention}.to_k", source, width)
            yield Layer(f"{block}.{attention}.to_v", source, width)
            yield Layer(f"{block}.{attention}.to_out.0", width, width)


def unet_geglu_layers(unet: UNetShape) -> Iterator[Layer]:
    """The first projection of every feed-forward: 4 times the width, twice, for value and gate."""
    for block, width in _transformer_blocks(unet):
        yield Layer(f"{block}.ff.net.0.proj", width, 8 * width)


def text_attention_layers(encoder: TextEncoderShape) -> Iterator[Layer]:
    """The q, k, v and output projections of a CLIP text encoder."""
    for index in range(encoder.layers):
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            name = f"{encoder.name}.text_model.encoder.layers.{index}.self_attn.{projection}"
            yield Layer(name, encoder.width, encoder.width)


def _transformer_blocks(unet: UNetShape) -> Iterator[tuple[str, int]]:
    """Path and width of every transformer block: down the UNet, through the middle, and up again."""
    blocks = list(zip(unet.channels, unet.transformer_depth, strict=True))
    places = [
        (f"down_blocks.{index}.attentions.{attention}", width, depth)
        for index, (width, depth) in enumerate(blocks)
        for attention in range(unet.layers_per_block)
    ]
    places.append(("mid_block.attentions.0", unet.channels[-1], unet.middle_depth))
    places += [
        (f"up_blocks.{index}.attentions.{attention}", width, depth)
        for index, (width, depth) in enumerate(reversed(blocks))
        for attention in range(unet.layers_per_block + 1)
    ]
    for path, width, depth in places:
        for index in range(depth):
            yield f"{path}.transformer_blocks.{index}", width
