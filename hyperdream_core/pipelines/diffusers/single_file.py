"""A base model from a single-file checkpoint (ldm layout), without its configuration and without a network.

Sizes are read from the tensors themselves and the rest from the family; diffusers' own converters rename the keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ...bases import BaseFamily, detect_family
from ...bases.family import TextEncoderShape
from ...bundled import SHIPPED, bundled_weights
from ...errors import BaseMismatchError, FileFormatError
from ...models.small_autoencoder import LikeDiffusers
from .building import deep_autoencoder, fill_model, noise_process_of, tensor_shapes
from .diffusers_base import DiffusersBase

UNET = "model.diffusion_model."
VAE = "first_stage_model."
_EDM_MARKS = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
Shapes = Mapping[str, tuple[int, ...]]

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
"""Of SD 1.x, 2.x and SDXL alike, as in their published inference configurations."""


def load_single_file(path: Path, dtype: torch.dtype) -> DiffusersBase:
    """The base in an ldm checkpoint; on the CPU, in `dtype`.

    Raises:
        FileFormatError: not safetensors, incomplete, or with tensors of other sizes.
        BaseMismatchError: of an unknown family.
    """
    shapes = tensor_shapes(path)
    mark = next((name for name in _EDM_MARKS if name in shapes), None)
    if mark is not None:
        raise BaseMismatchError(
            f"{path.name}: is an EDM checkpoint (it holds {mark!r}), as Playground 2.5 and CosXL are, whose network is "
            "given other inputs; use a checkpoint with epsilon or v prediction"
        )
    try:
        family = detect_family(shapes)
    except BaseMismatchError as error:
        raise BaseMismatchError(f"{path.name}: {error}") from error
    _check_parts(path, family, shapes)
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata() or {})
        unet = _load_unet(path, family, shapes, _part(file, shapes, UNET, dtype))
        vae = _load_vae(path, family, shapes, _part(file, shapes, VAE, dtype))
        encoders = [
            _load_text_encoder(path, encoder, shapes, _part(file, shapes, f"{encoder.ldm_prefix}.", dtype))
            for encoder in family.text_encoders
        ]
    schedule = _schedule(family, metadata, shapes)
    return DiffusersBase(
        family=family,
        unet=unet,
        vae=vae,
        text_encoders=tuple(encoders),
        tokenizers=tuple(_tokenizer(encoder) for encoder in family.text_encoders),
        scheduler_config=schedule,
        noise=noise_process_of(schedule),
    )


def unet_config(family: BaseFamily, shapes: Shapes) -> dict[str, Any]:
    """diffusers' configuration of the UNet whose ldm tensors have these shapes."""
    shape = family.unet
    attends = [depth > 0 for depth in shape.transformer_depth]
    # SD 2.x and SDXL project with linear layers and have heads of 64; SD 1.x has 1x1 convolutions and 8 heads.
    is_linear = len(shapes[f"{UNET}middle_block.1.proj_in.weight"]) == 2
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
    labels = shapes.get(f"{UNET}label_emb.0.0.weight")
    if labels is not None:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": labels[1],
        }
    return config


def vae_config(family: BaseFamily, shapes: Shapes) -> dict[str, Any]:
    """diffusers' configuration of the VAE whose ldm tensors have these shapes."""
    levels = _count(shapes, f"{VAE}encoder.down.")
    channels = tuple(shapes[f"{VAE}encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels))
    return {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": channels,
        "layers_per_block": _count(shapes, f"{VAE}encoder.down.0.block."),
        "latent_channels": shapes[f"{VAE}post_quant_conv.weight"][0],
        "sample_size": family.picture_size,
        "scaling_factor": family.scaling_factor,
    }


def deep_vae_config(family: BaseFamily, shapes: Shapes) -> dict[str, Any]:
    """diffusers' configuration of the miniature's AutoencoderDC, under diffusers' names, with these shapes."""
    config: dict[str, Any] = {
        "latent_channels": family.latent_channels,
        "scaling_factor": family.scaling_factor,
        "encoder_out_shortcut": False,
    }
    for part, side in (("encoder", "down"), ("decoder", "up")):
        end = {"encoder": "conv_out", "decoder": "conv_in"}[part]
        # The encoder's deepest level has a width but no layers, so no tensors.
        deepest = shapes[f"{VAE}{part}.{end}.weight"][1 if part == "encoder" else 0]
        widths, layers = [], []
        for level in range(_count(shapes, f"{VAE}{part}.{side}_blocks.") + (part == "encoder")):
            found = [name for name in shapes if re.match(rf"{VAE}{part}\.{side}_blocks\.{level}\.\d+\.conv1\.w", name)]
            widths.append(shapes[found[0]][0] if found else deepest)
            layers.append(len(found))
        config[f"{part}_block_out_channels"], config[f"{part}_layers_per_block"] = tuple(widths), tuple(layers)
        config[f"{part}_qkv_multiscales"] = ((),) * len(widths)
    return config


def text_config(encoder: TextEncoderShape, shapes: Shapes) -> Any:
    """transformers' configuration of a text encoder."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=encoder.width,
        intermediate_size=4 * encoder.width,
        projection_dim=encoder.width,
        num_hidden_layers=encoder.layers,
        # Heads of 64, as in every CLIP; the miniature, narrower than that, has four.
        num_attention_heads=max(4, encoder.width // 64),
        max_position_embeddings=77,
        hidden_act="gelu" if encoder.is_open_clip else "quick_gelu",
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=0 if encoder.is_open_clip else 49407,
    )


def _load_unet(path: Path, family: BaseFamily, shapes: Shapes, tensors: dict[str, Tensor]) -> nn.Module:
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    config = unet_config(family, shapes)
    return fill_model(path, UNet2DConditionModel, config, convert_ldm_unet_checkpoint(tensors, config))


def _load_vae(path: Path, family: BaseFamily, shapes: Shapes, tensors: dict[str, Tensor]) -> nn.Module:
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    if f"{VAE}decoder.up_blocks.0.0.conv.weight" in shapes:
        plain = {name.removeprefix(VAE): tensor for name, tensor in tensors.items()}
        kind, deep = deep_autoencoder(), deep_vae_config(family, shapes)
        return LikeDiffusers(deep, plain) if kind is None else fill_model(path, kind, deep, plain)
    config = vae_config(family, shapes)
    return fill_model(path, AutoencoderKL, config, convert_ldm_vae_checkpoint(tensors, config))


def _load_text_encoder(path: Path, encoder: TextEncoderShape, shapes: Shapes, tensors: dict[str, Tensor]) -> nn.Module:
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_open_clip_checkpoint
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    config = text_config(encoder, shapes)
    # The pooled output that the second encoder of SDXL gives needs the projection.
    kind = CLIPTextModelWithProjection if encoder.name == "text_encoder_2" else CLIPTextModel
    prefix = f"{encoder.ldm_prefix}."
    if encoder.is_open_clip:
        # diffusers looks only at the width of the model it is given.
        converted = convert_open_clip_checkpoint(_Configured(config), tensors, prefix=prefix)
    else:
        converted = convert_ldm_clip_checkpoint(tensors, prefix)
    return fill_model(path, kind, config, converted)


class _Configured:
    def __init__(self, config: Any) -> None:
        self.config = config


def _part(file: safe_open, shapes: Shapes, prefix: str, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: file.get_tensor(name).to(dtype) for name in shapes if name.startswith(prefix)}


def _check_parts(path: Path, family: BaseFamily, shapes: Shapes) -> None:
    parts = {"UNet": UNET, "VAE": VAE}
    parts |= {f"text encoder {index}": e.ldm_prefix + "." for index, e in enumerate(family.text_encoders, start=1)}
    for thing, prefix in parts.items():
        if not any(name.startswith(prefix) for name in shapes):
            raise FileFormatError(
                path,
                f"has no {thing} (no tensor under {prefix!r}), but a checkpoint of {family.title} with UNet, VAE and "
                "text encoder is expected; use the whole checkpoint, not one of its parts",
            )


def _schedule(family: BaseFamily, metadata: Mapping[str, str], names: Iterable[str]) -> dict[str, Any]:
    """The noise schedule; what the UNet predicts is said by metadata or marker tensors, if at all."""
    names = set(names)
    prediction = {"v": "v_prediction", "epsilon": "epsilon"}.get(metadata.get("modelspec.prediction_type", ""))
    if prediction is None:
        prediction = "v_prediction" if "v_pred" in names else family.prediction_types[0]
    return {
        "_class_name": "DDIMScheduler",
        **SCHEDULE,
        "prediction_type": prediction,
        "rescale_betas_zero_snr": "ztsnr" in names,
    }


def _tokenizer(encoder: TextEncoderShape) -> Any:
    """CLIP's, the same for every family; OpenCLIP pads with its first token."""
    from transformers import CLIPTokenizer

    folder = bundled_weights() / SHIPPED / "base" / "tokenizer"
    padding = {"pad_token": "!"} if encoder.is_open_clip else {}
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True, **padding)


def _count(names: Iterable[str], prefix: str) -> int:
    """How many different numbers follow the prefix."""
    return len({name[len(prefix) :].split(".")[0] for name in names if name.startswith(prefix)})
