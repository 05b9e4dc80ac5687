"""Where a single-file checkpoint (ldm layout) keeps each tensor of a network, and in which form.

Asked from the network's side, one name at a time: so it takes no longer for any number of strange names in a file, and
what a file lacks is seen before anything is read. diffusers' own converters go through a file's names time and again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ...bases import BaseFamily
from ...bases.family import TextEncoderShape
from ...bases.keys import unet_to_ldm

UNET = "model.diffusion_model."
VAE = "first_stage_model."

Form = Literal["plain", "q", "k", "v", "transposed", "projection"]
_THIRDS = ("q", "k", "v")
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


@dataclass(frozen=True)
class Source:
    """A tensor of a file, and what a network's tensor is of it."""

    name: str
    form: Form = "plain"
    """itself; the first, second or last third of its rows (q, k, v fused); transposed; or a 1x1 convolution whose
    numbers a linear layer takes"""

    def shapes(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The shapes it may have in the file, for a network's tensor of this shape."""
        if self.form in _THIRDS:
            return ((3 * shape[0], *shape[1:]),)
        if self.form == "transposed":
            return (shape[::-1],)
        return (shape, (*shape, 1), (*shape, 1, 1)) if self.form == "projection" else (shape,)

    def taken(self, tensor: Tensor) -> Tensor:
        """The network's tensor; of one of those shapes."""
        if self.form in _THIRDS:
            return tensor.chunk(3)[_THIRDS.index(self.form)].clone()
        if self.form == "transposed":
            return tensor.T.contiguous()
        return tensor.flatten(1) if self.form == "projection" else tensor


Sources = Callable[[str], Source]
"""A tensor's name within a network -> where it lies."""


def unet_sources(family: BaseFamily) -> Sources:
    """Of a UNet2DConditionModel of that family."""
    return lambda name: Source(UNET + unet_to_ldm(name, family.unet))


def vae_sources(levels: int) -> Sources:
    """Of an AutoencoderKL of so many levels."""

    def source(name: str) -> Source:
        # ldm's attention in the VAE is made of 1x1 convolutions.
        is_projection = ".attentions." in name and name.endswith(".weight") and "group_norm" not in name
        return Source(VAE + vae_to_ldm(name, levels), "projection" if is_projection else "plain")

    return source


def text_sources(encoder: TextEncoderShape, names: Container[str]) -> Sources:
    """Of a CLIPTextModel, whose tensors lie under one of these names."""
    prefix = f"{encoder.ldm_prefix}."
    return _open_clip(prefix) if encoder.is_open_clip else clip_sources(prefix, names)


def clip_sources(prefix: str, names: Container[str]) -> Sources:
    """Of a CLIPTextModel as transformers keeps it.

    transformers 5.6 dropped the level `text_model`, which most files still have and the miniature has not.
    """

    def source(name: str) -> Source:
        short = name.removeprefix("text_model.")
        shallow, deep = Source(prefix + short), Source(f"{prefix}text_model.{short}")
        is_shallow = "text_projection." in name or (shallow.name in names and deep.name not in names)
        return shallow if is_shallow else deep

    return source


def _open_clip(prefix: str) -> Sources:
    def source(name: str) -> Source:
        short = name.removeprefix("text_model.")
        if short == "text_projection.weight":
            return Source(f"{prefix}text_projection", "transposed")
        if short in _OPEN_CLIP:
            return Source(prefix + _OPEN_CLIP[short])
        index, _, rest = short.removeprefix("encoder.layers.").partition(".")
        module, _, end = rest.rpartition(".")
        block = f"{prefix}transformer.resblocks.{index}"
        for third in _THIRDS:
            if module == f"self_attn.{third}_proj":
                return Source(f"{block}.attn.in_proj_{end}", third)  # type: ignore[arg-type]
        return Source(f"{block}.{_OPEN_CLIP_LAYER.get(module, module)}.{end}")

    return source


def vae_to_ldm(name: str, levels: int) -> str:
    """A VAE tensor's diffusers name as ldm's, within the VAE of so many levels."""

    def block(match: re.Match[str]) -> str:
        level = int(match[2]) if match[1] == "down" else levels - 1 - int(match[2])
        return f".{match[1]}.{level}."

    name = re.sub(r"\.(down|up)_blocks\.(\d)\.", block, name)
    name = name.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
    name = re.sub(r"\.resnets\.(\d)", r".block.\1", name).replace("conv_shortcut", "nin_shortcut")
    name = name.replace("conv_norm_out", "norm_out")
    if "mid_block.attentions.0." in name:
        head, _, rest = name.partition("mid_block.attentions.0.")
        module, _, end = rest.rpartition(".")
        return f"{head}mid.attn_1.{_VAE_ATTENTION[module]}.{end}"
    return name
