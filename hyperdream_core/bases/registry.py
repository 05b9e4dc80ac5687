"""The known base families by name, and by the shapes of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import BaseMismatchError, ConfigError
from .family import BaseFamily
from .keys import to_ldm
from .miniature import MINIATURE
from .sd2 import SD2
from .sd15 import SD15
from .sdxl import SDXL

BASES = {base.name: base for base in (SD15, SD2, SDXL, MINIATURE)}

_PREFIXES = ("", "unet.", "diffusion_model.", "model.diffusion_model.")
_ATTENTION_ENDINGS = tuple(
    f".{attention}.{projection}.weight"
    for attention in ("attn1", "attn2")
    for projection in ("to_q", "to_k", "to_v", "to_out.0")
)
_FIRST_CONVOLUTIONS = ("conv_in.weight", "input_blocks.0.0.weight")


def get_base(name: str) -> BaseFamily:
    """The family of that name.

    Raises:
        ConfigError: no such family; lists those there are.
    """
    if name not in BASES:
        raise ConfigError(f"unknown base family {name!r}; known: {', '.join(BASES)}")
    return BASES[name]


def detect_family(shapes: Mapping[str, tuple[int, ...]]) -> BaseFamily:
    """The family of a checkpoint, from the tensor shapes of its UNet; other tensors may be among them.

    Args:
        shapes: tensor name -> shape, in diffusers or ldm names, with or without the usual prefixes.

    Raises:
        BaseMismatchError: no known family has these attention layers, or the UNet takes extra latent channels.
    """
    for family in BASES.values():
        for prefix in _PREFIXES:
            if _has_attention_of(family, prefix, shapes):
                _check_input_channels(family, prefix, shapes)
                return family
    raise BaseMismatchError(
        f"the checkpoint has {_what_was_seen(shapes)}, which is none of the known families. Use a checkpoint of "
        f"{', '.join(family.title for family in BASES.values())}."
    )


def _has_attention_of(family: BaseFamily, prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    layers = family.layers("attention")
    sizes = [(layer.out_features, layer.in_features) for layer in layers]
    for names in ([layer.name for layer in layers], [to_ldm(layer.name, family) for layer in layers]):
        if [_shape(shapes, f"{prefix}{name}.weight") for name in names] != sizes:
            continue
        # The table must hold all of the UNet's attention: a larger UNet may contain a smaller one.
        return len(sizes) == sum(name.startswith(prefix) and _is_unet_attention(name) for name in shapes)
    return False


def _check_input_channels(family: BaseFamily, prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name in _FIRST_CONVOLUTIONS:
        shape = _shape(shapes, prefix + name)
        if shape is not None and len(shape) == 4 and shape[1] != family.latent_channels:
            raise BaseMismatchError(
                f"the checkpoint is of {family.title} and its UNet takes {shape[1]} channels, but "
                f"{family.latent_channels} are expected. It is an inpainting, depth or editing variant; "
                "use the ordinary checkpoint."
            )


def _what_was_seen(shapes: Mapping[str, tuple[int, ...]]) -> str:
    attention = [name for name in shapes if _is_unet_attention(name)]
    if not attention:
        return f"{len(shapes)} tensors and no attention layer of a Stable Diffusion UNet"
    matrices = [name for name in attention if len(shapes[name]) == 2]
    contexts = sorted({shapes[name][1] for name in matrices if name.endswith("attn2.to_k.weight")})
    widths = sorted({shapes[name][0] for name in matrices})
    return f"{len(attention)} attention layers of widths {widths} reading text tokens of widths {contexts}"


def _is_unet_attention(name: str) -> bool:
    return ".transformer_blocks." in name and name.endswith(_ATTENTION_ENDINGS)


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, ...] | None:
    return tuple(shapes[name]) if name in shapes else None
