"""A base model from a folder in the diffusers layout, each network of which is seen to fit its configuration."""

from __future__ import annotations

import re
from collections.abc import Container
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...bases import BaseFamily, detect_family
from ...bases.family import TextEncoderShape
from ...errors import BaseMismatchError, FileFormatError, quoted
from ...json_text import read_json
from ...models.image_encoder import building_errors
from ...regular_file import check_regular
from .building import Plan, as_vae, bounded_config, check_settings, deep_autoencoder, planned
from .configurations import text_config_of, text_heads, unet_config
from .diffusers_base import DiffusersBase
from .ldm_tensors import UNET, Source, Sources, clip_sources
from .schedule import schedule_in_folder
from .weights import WeightFiles

_OLD_WEIGHTS = ("*.bin", "*.ckpt", "*.pt", "*.pth")
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""New -> old name of a layer of the VAE's attention."""
_FREE = ("sample_size", "down_block_types", "up_block_types")
"""Entries of a UNet that do not matter, or that the shapes of its tensors say."""
_ALL_UNETS = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "resnet_out_scale_factor": 1,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
}
"""What all UNets of the known families have in common and the shapes of their tensors do not show."""
_DEEP_VAE = {
    "decoder_act_fns": "silu",
    "decoder_block_types": "ResBlock",
    "decoder_conv_act_fn": "relu",
    "decoder_in_shortcut": True,
    "decoder_norm_types": "rms_norm",
    "downsample_block_type": "pixel_unshuffle",
    "encoder_block_types": "ResBlock",
    "encoder_out_shortcut": False,
    "upsample_block_type": "pixel_shuffle",
}
"""Of the miniature's VAE likewise."""
_LARGEST_VOCABULARY = 20_000_000  # bytes
_ADVICE = "configuration and weights are not of one model; download the folder again"


def load_folder(folder: Path, dtype: torch.dtype, prediction_type: str | None = None) -> DiffusersBase:
    """The base in a diffusers folder; on the CPU, in `dtype`.

    Raises:
        FileFormatError: incomplete, out of bounds, or with configurations that are not of their weights.
        BaseMismatchError: of an unknown family.
    """
    unet = _weights(folder / "unet")
    family = folder_family(folder, unet)
    try:
        schedule = schedule_in_folder(folder / "scheduler" / "scheduler_config.json", prediction_type)
        planned_unet = _plan_unet(folder / "unet", family, unet)
        vae, scaling_factor = _plan_vae(folder / "vae", family)
        encoders = [_plan_text_encoder(folder / encoder.name, encoder) for encoder in family.text_encoders]
        tokenizers = [
            _tokenizer(folder / encoder.name.replace("text_encoder", "tokenizer"), plan)
            for encoder, plan in zip(family.text_encoders, encoders, strict=True)
        ]
    except FileFormatError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise FileFormatError(
            folder,
            f"is not a complete diffusers folder ({error}), but unet, vae, text_encoder, tokenizer and scheduler are "
            "expected; download it again",
        ) from error
    return DiffusersBase(
        family=family,
        unet=planned_unet.filled(dtype),
        vae=as_vae(vae.filled(dtype), scaling_factor),
        text_encoders=tuple(encoder.filled(dtype) for encoder in encoders),
        tokenizers=tuple(tokenizers),
        scheduler_config=schedule.config,
        noise=schedule.noise,
        assumptions=schedule.assumptions,
    )


def unet_files(folder: Path) -> WeightFiles:
    """The weights of the UNet in a folder."""
    return _weights(folder / "unet")


def folder_family(folder: Path, unet: WeightFiles | None = None) -> BaseFamily:
    """The family of the UNet in a folder, from headers alone."""
    weights = unet or _weights(folder / "unet")
    try:
        return detect_family(weights.shapes)
    except BaseMismatchError as error:
        raise BaseMismatchError(f"{folder}: {error}") from error


def load_vae(folder: Path, dtype: torch.dtype) -> nn.Module:
    """The VAE in a diffusers folder: an AutoencoderKL, AutoencoderTiny or, as the miniature's, AutoencoderDC.

    Raises:
        FileFormatError: its configuration is out of bounds, or not that of its weights.
    """
    vae, scaling_factor = _plan_vae(folder)
    return as_vae(vae.filled(dtype), scaling_factor)


def _plan_unet(folder: Path, family: BaseFamily, weights: WeightFiles) -> Plan:
    from diffusers import UNet2DConditionModel

    path = folder / "config.json"
    config = bounded_config(path)
    projection = weights.shapes.get("mid_block.attentions.0.proj_in.weight", ())
    usual = unet_config(family, {f"{UNET}middle_block.1.proj_in.weight": projection})
    expected = _ALL_UNETS | {key: value for key, value in usual.items() if key not in _FREE}
    check_settings(path, config, expected, f"a UNet of {family.title}")
    known = _known(UNet2DConditionModel, config)
    return planned(lambda: UNet2DConditionModel(**known), weights, Source, ("",), _ADVICE)


def _plan_vae(folder: Path, family: BaseFamily | None = None) -> tuple[Plan, float]:
    """The VAE and the factor of its latents."""
    from diffusers import AutoencoderKL, AutoencoderTiny

    path, weights = folder / "config.json", _weights(folder)
    config = bounded_config(path)
    scaling_factor = _scaling_factor(path, config)
    if family is not None:
        _check_vae(path, config, family)
    name = config.get("_class_name")
    if name == "AutoencoderDC":
        check_settings(path, config, _DEEP_VAE, "the miniature's VAE")
        return planned(deep_autoencoder(config), weights, Source, ("",), _ADVICE), scaling_factor
    kind = AutoencoderTiny if name == "AutoencoderTiny" else AutoencoderKL
    known = _known(kind, config)
    return planned(lambda: kind(**known), weights, _vae_sources(weights.table), ("",), _ADVICE), scaling_factor


def _check_vae(path: Path, config: dict[str, Any], family: BaseFamily) -> None:
    """See that its latents are those of the family."""
    check_settings(path, config, {"latent_channels": family.latent_channels}, f"of a base of {family.title}")
    for key in ("block_out_channels", "encoder_block_out_channels"):
        widths = config.get(key)
        if widths and (not isinstance(widths, list) or 2 ** (len(widths) - 1) != family.vae_factor):
            raise FileFormatError(
                path,
                f"says {key} {quoted(widths)}, but {family.vae_factor.bit_length()} widths are expected of a VAE of "
                f"{family.title}; {_ADVICE}",
            )
    widths = config.get("block_out_channels")
    if widths and all(type(one) is int and one % 32 == 0 for one in widths):
        check_settings(path, config, {"norm_num_groups": 32}, "a VAE of these widths")


def _scaling_factor(path: Path, config: dict[str, Any]) -> float:
    factor = config.get("scaling_factor", 0.18215)
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 1e-3 <= factor <= 1e3:
        raise FileFormatError(path, f"says scaling_factor {quoted(factor)}, but 0.001 to 1000 is expected; {_ADVICE}")
    for key in ("shift_factor", "latents_mean", "latents_std"):
        if config.get(key) is not None:
            raise FileFormatError(
                path, f"says {key}, which no VAE of a known base has; use the folder of an ordinary checkpoint"
            )
    return float(factor)


def _plan_text_encoder(folder: Path, encoder: TextEncoderShape) -> Plan:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    path, weights = folder / "config.json", _weights(folder)
    config = bounded_config(path)
    expected: dict[str, Any] = {
        "hidden_size": encoder.width,
        "num_attention_heads": text_heads(encoder),
        "hidden_act": "gelu" if encoder.is_open_clip else "quick_gelu",
        "layer_norm_eps": 1e-5,
    }
    projects = encoder.name == "text_encoder_2"
    if projects:
        expected["projection_dim"] = encoder.width
    check_settings(path, config, expected, f"read as the base's {encoder.name}")
    kind = CLIPTextModelWithProjection if projects else CLIPTextModel
    return planned(lambda: kind(text_config_of(config)), weights, clip_sources("", weights.table), (), _ADVICE)


def _tokenizer(folder: Path, encoder: Plan) -> Any:
    """CLIP's tokenizer in a folder, all of whose tokens the text encoder knows."""
    from transformers import CLIPTokenizer

    if not folder.is_dir():
        raise FileFormatError(folder, "is not there") from FileNotFoundError(folder)
    for file in sorted(folder.iterdir()):
        if file.is_dir():
            continue
        check_regular(file)
        if file.suffix == ".json":
            read_json(file, most=_LARGEST_VOCABULARY)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        ids = tokenizer(["a face"], padding="max_length", max_length=77, truncation=True).input_ids[0]
        largest = max(*ids, *tokenizer.get_vocab().values())
    except Exception as error:
        # Its library in Rust raises what is an `Exception` and nothing more special.
        if type(error) is not Exception and not isinstance(error, building_errors()):
            raise
        raise FileFormatError(
            folder, f"is no tokenizer that can be read ({quoted(error, 300)}); download the folder again"
        ) from error
    known = encoder.model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if len(ids) != 77 or largest >= known:
        raise FileFormatError(
            folder,
            f"has tokens up to number {largest:,}, but the text encoder knows {known:,}; download the folder again",
        )
    return tokenizer


def _known(kind: Any, config: dict[str, Any]) -> dict[str, Any]:
    """The entries that a class takes; others are of other releases and of other programs."""
    return {key: config[key] for key in signature(kind).parameters if key in config}


def _vae_sources(names: Container[str]) -> Sources:
    """Of an AutoencoderKL, whose attention had other names before diffusers 0.18."""

    def source(name: str) -> Source:
        old = name
        for new, before in _OLD_ATTENTION.items():
            old = re.sub(rf"(\.attentions\.\d+\.){re.escape(new)}\.", rf"\g<1>{before}.", old)
        is_projection = old != name and name.endswith(".weight")
        return Source(old if name not in names and old in names else name, "projection" if is_projection else "plain")

    return source


def _weights(folder: Path) -> WeightFiles:
    """The weights of one network: the plain form where there is also one of half precision or of a training."""
    files = [file for file in sorted(folder.glob("*.safetensors")) if check_regular(file) is not None]
    if files:
        # model.safetensors, model-00001-of-00002.safetensors, model.fp16.safetensors, model.non_ema.safetensors
        plain = [file for file in files if "." not in file.stem] or [file for file in files if ".fp16" in file.stem]
        whole = [file for file in plain if not re.search(r"-\d{5}-of-\d{5}$", file.stem)]
        return WeightFiles.of(whole[:1] or plain or files[:1])
    old = next((file for pattern in _OLD_WEIGHTS for file in folder.glob(pattern)), None)
    if old is not None:
        raise FileFormatError(
            old,
            f"is the only kind of weights in {folder}, but only .safetensors is read, because old formats can run "
            "code; get the safetensors form of this model",
        )
    raise FileFormatError(
        folder, f"has no weights (.safetensors) in {folder}, but a base needs them; download the folder again"
    )
