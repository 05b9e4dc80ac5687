"""diffusers' and transformers' configurations of the networks in a single-file checkpoint, which brings none.

The UNet and the text encoders are the family's; the VAE's levels are read off its tensors.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ...bases import BaseFamily
from ...bases.family import TextEncoderShape
from ...errors import FileFormatError, quoted
from .ldm_tensors import UNET, VAE

Shapes = Mapping[str, tuple[int, ...]]
_MOST_LAYERS = 8
"""of one level of a VAE; all that there are have 3 at most"""
_TEXT_ENTRIES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "projection_dim",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
_SIZES, _SIZE_WIDTH = 6, 256
"""numbers of sizes and corners that SDXL is told, and the width that each is embedded in"""


def unet_config(family: BaseFamily, shapes: Shapes) -> dict[str, Any]:
    """diffusers' configuration of the family's UNet whose ldm tensors have these shapes."""
    shape = family.unet
    attends = [depth > 0 for depth in shape.transformer_depth]
    # SD 2.x and SDXL project with linear layers and have heads of 64; SD 1.x has 1x1 convolutions and 8 heads.
    is_linear = len(shapes.get(f"{UNET}middle_block.1.proj_in.weight", ())) == 2
    config: dict[str, Any] = {
        "sample_size": family.picture_size // family.vae_factor,
        "in_channels": family.latent_channels,
        "out_channels": family.latent_channels,
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        "block_out_channels": shape.channels,
        "layers_per_block": shape.layers_per_block,
        "cross_attention_dim": shape.context_dim,
        "transformer_layers_per_block": tuple(max(1, depth) for depth in shape.transformer_depth),
        "attention_head_dim": tuple(width // 64 for width in shape.channels) if is_linear else 8,
        "use_linear_projection": is_linear,
    }
    if len(family.text_encoders) > 1:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": _SIZE_WIDTH,
            "projection_class_embeddings_input_dim": _SIZES * _SIZE_WIDTH + family.text_encoders[-1].width,
        }
    return config


def vae_config(path: Path, family: BaseFamily, shapes: Shapes) -> dict[str, Any]:
    """diffusers' configuration of the VAE whose ldm tensors have these shapes.

    Raises:
        FileFormatError: its levels or their layers are not those of a VAE.
    """
    levels = _check_levels(path, family, _numbers(shapes, f"{VAE}encoder.down."))
    layers = len(_numbers(shapes, f"{VAE}encoder.down.0.block."))
    if not 1 <= layers <= _MOST_LAYERS:
        raise _odd(path, f"{layers:,} layers in its first level", f"1 to {_MOST_LAYERS}")
    return {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": tuple(
            _width(path, shapes, f"{VAE}encoder.down.{level}.block.0.conv1.weight", 0) for level in range(levels)
        ),
        "layers_per_block": layers,
        "latent_channels": family.latent_channels,
        "sample_size": family.picture_size,
        "scaling_factor": family.scaling_factor,
    }


def deep_vae_config(path: Path, family: BaseFamily, shapes: Shapes) -> dict[str, Any]:
    """diffusers' configuration of the miniature's AutoencoderDC, under diffusers' names, with these shapes.

    Raises:
        FileFormatError: as `vae_config`.
    """
    config: dict[str, Any] = {
        "latent_channels": family.latent_channels,
        "scaling_factor": family.scaling_factor,
        "encoder_out_shortcut": False,
    }
    for part, side, end, axis in (("encoder", "down", "conv_out", 1), ("decoder", "up", "conv_in", 0)):
        found = _numbers(shapes, f"{VAE}{part}.{side}_blocks.")
        if part == "encoder":
            # Its deepest level has a width but no layers, so no tensors.
            found |= {str(len(found))}
        levels = _check_levels(path, family, found)
        deepest = _width(path, shapes, f"{VAE}{part}.{end}.weight", axis)
        widths, layers = [deepest] * levels, [0] * levels
        for name in shapes:
            match = re.fullmatch(rf"{re.escape(VAE)}{part}\.{side}_blocks\.(\d)\.\d\.conv1\.weight", name)
            if match is not None and int(match[1]) < levels:
                widths[int(match[1])] = _width(path, shapes, name, 0)
                layers[int(match[1])] += 1
        config[f"{part}_block_out_channels"], config[f"{part}_layers_per_block"] = tuple(widths), tuple(layers)
        config[f"{part}_qkv_multiscales"] = ((),) * levels
    return config


def text_config(encoder: TextEncoderShape) -> Any:
    """transformers' configuration of a text encoder of the family."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=encoder.width,
        intermediate_size=4 * encoder.width,
        projection_dim=encoder.width,
        num_hidden_layers=encoder.layers,
        num_attention_heads=text_heads(encoder),
        max_position_embeddings=77,
        hidden_act="gelu" if encoder.is_open_clip else "quick_gelu",
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=0 if encoder.is_open_clip else 49407,
    )


def text_config_of(given: Mapping[str, Any]) -> Any:
    """transformers' configuration with the entries of a folder's that say what the network is and does."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(**{key: given[key] for key in _TEXT_ENTRIES if key in given})


def text_heads(encoder: TextEncoderShape) -> int:
    """Heads of 64, as in every CLIP; the miniature, narrower than that, has four."""
    return max(4, encoder.width // 64)


def _numbers(names: Collection[str], prefix: str) -> set[str]:
    """What follows the prefix, up to the next dot."""
    return {name[len(prefix) :].partition(".")[0] for name in names if name.startswith(prefix)}


def _check_levels(path: Path, family: BaseFamily, found: Collection[str]) -> int:
    expected = family.vae_factor.bit_length()
    if set(found) != {str(level) for level in range(expected)}:
        raise _odd(path, f"the levels {quoted(', '.join(sorted(found)[:20]))}", f"0 to {expected - 1}")
    return expected


def _width(path: Path, shapes: Shapes, name: str, axis: int) -> int:
    shape = shapes.get(name, ())
    if len(shape) != 4 or shape[axis] < 1:
        raise _odd(path, f"{quoted(name, 120)} of shape {quoted(shape)}", "a convolution")
    return shape[axis]


def _odd(path: Path, found: str, expected: str) -> FileFormatError:
    return FileFormatError(
        path, f"has a VAE with {found}, but {expected} is expected; use an ordinary, whole checkpoint"
    )
