"""A base model from a single-file checkpoint (ldm layout), without its configuration and without a network.

Sizes are read from the header and the rest from the family; all of it is checked before the first tensor is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...bases import BaseFamily, detect_family
from ...bases.family import TextEncoderShape
from ...bundled import SHIPPED, bundled_weights
from ...errors import BaseMismatchError, FileFormatError
from .building import Plan, as_vae, deep_autoencoder, planned
from .configurations import deep_vae_config, text_config, unet_config, vae_config
from .diffusers_base import DiffusersBase
from .ldm_tensors import UNET, VAE, Source, text_sources, unet_sources, vae_sources
from .schedule import refuse_edm, schedule_of_file
from .weights import WeightFiles

_VAE_ROOMS = tuple(f"{VAE}{room}." for room in ("encoder", "decoder", "quant_conv", "post_quant_conv"))
"""What a VAE is made of; files may also hold what it was trained against."""
_ADVICE = "use an ordinary, whole checkpoint"


def load_single_file(path: Path, dtype: torch.dtype, prediction_type: str | None = None) -> DiffusersBase:
    """The base in an ldm checkpoint; on the CPU, in `dtype`.

    Raises:
        FileFormatError: not safetensors, incomplete, quantised, or with tensors of other sizes.
        BaseMismatchError: of an unknown family.
    """
    weights = WeightFiles.of([path])
    family = file_family(weights)
    schedule = schedule_of_file(path, family, weights.metadata, weights.table, prediction_type)
    unet, vae = _plan_unet(family, weights), _plan_vae(family, weights)
    encoders = [_plan_text_encoder(encoder, weights) for encoder in family.text_encoders]
    return DiffusersBase(
        family=family,
        unet=unet.filled(dtype),
        vae=as_vae(vae.filled(dtype), family.scaling_factor),
        text_encoders=tuple(encoder.filled(dtype) for encoder in encoders),
        tokenizers=tuple(_tokenizer(encoder) for encoder in family.text_encoders),
        scheduler_config=schedule.config,
        noise=schedule.noise,
        assumptions=schedule.assumptions,
    )


def describe_file(path: Path) -> dict[str, Any]:
    """What a checkpoint is, from its header alone, for `inspect`: JSON values.

    Raises:
        FileFormatError, BaseMismatchError: as `load_single_file`; but a UNet alone is said to be one.
    """
    weights = WeightFiles.of([path])
    refuse_edm(path, weights.table)
    found: dict[str, Any] = {}
    family = _unet_family(weights)
    if is_bare_unet(family, weights.table):
        found["kind"] = "UNet alone"
        found["note"] = "no base by itself: VAE and text encoders are missing; use the whole checkpoint"
    else:
        family = file_family(weights)
    for name in weights.table:
        if name.startswith((UNET, *_VAE_ROOMS)):
            weights.check_numbers(name)
    schedule = schedule_of_file(path, family, weights.metadata, weights.table)
    return {
        **found,
        "family": family.name,
        "title": family.title,
        "tensors": len(weights.table),
        "prediction_type": schedule.noise.name,
        "assumptions": list(schedule.assumptions),
    }


def file_family(weights: WeightFiles) -> BaseFamily:
    """The family of a whole checkpoint.

    Raises:
        FileFormatError: a part is missing.
        BaseMismatchError: of an unknown family or kind.
    """
    path = weights.path
    refuse_edm(path, weights.table)
    family = _unet_family(weights)
    missing = missing_parts(family, weights.table)
    if missing:
        found = "is a UNet alone and has" if is_bare_unet(family, weights.table) else "has"
        told = ", ".join(f"no {thing} (no tensor under {prefix!r})" for thing, prefix in missing.items())
        raise FileFormatError(
            path,
            f"{found} {told}, but a checkpoint of {family.title} with UNet, VAE and text encoder is expected; use the "
            "whole checkpoint, not one of its parts",
        )
    return family


def _unet_family(weights: WeightFiles) -> BaseFamily:
    try:
        return detect_family(weights.shapes)
    except BaseMismatchError as error:
        raise BaseMismatchError(f"{weights.path.name}: {error}") from error


def missing_parts(family: BaseFamily, names: Mapping[str, object]) -> dict[str, str]:
    """The parts that a checkpoint of the family lacks, and how their tensors' names would begin."""
    parts = {"UNet": UNET, "VAE": VAE}
    parts |= {f"text encoder {index}": e.ldm_prefix + "." for index, e in enumerate(family.text_encoders, start=1)}
    return {thing: prefix for thing, prefix in parts.items() if not any(name.startswith(prefix) for name in names)}


def is_bare_unet(family: BaseFamily, names: Mapping[str, object]) -> bool:
    """Whether a file in which that family's UNet was found holds nothing else."""
    missing = missing_parts(family, names)
    return len(missing) >= len(family.text_encoders) + 1 and "VAE" in missing


def _plan_unet(family: BaseFamily, weights: WeightFiles) -> Plan:
    from diffusers import UNet2DConditionModel

    config = unet_config(family, weights.shapes)
    return planned(lambda: UNet2DConditionModel(**config), weights, unet_sources(family), (UNET,), _ADVICE)


def _plan_vae(family: BaseFamily, weights: WeightFiles) -> Plan:
    from diffusers import AutoencoderKL

    if f"{VAE}decoder.up_blocks.0.0.conv.weight" not in weights.table:
        config = vae_config(weights.path, family, weights.shapes)
        sources = vae_sources(len(config["block_out_channels"]))
        return planned(lambda: AutoencoderKL(**config), weights, sources, _VAE_ROOMS, _ADVICE)
    config = deep_vae_config(weights.path, family, weights.shapes)
    return planned(deep_autoencoder(config), weights, lambda name: Source(VAE + name), _VAE_ROOMS, _ADVICE)


def _plan_text_encoder(encoder: TextEncoderShape, weights: WeightFiles) -> Plan:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    # The pooled output that the second encoder of SDXL gives needs the projection.
    kind = CLIPTextModelWithProjection if encoder.name == "text_encoder_2" else CLIPTextModel
    sources = text_sources(encoder, weights.table)
    return planned(lambda: kind(text_config(encoder)), weights, sources, (), _ADVICE)


def _tokenizer(encoder: TextEncoderShape) -> Any:
    """CLIP's, the same for every family; OpenCLIP pads with its first token."""
    from transformers import CLIPTokenizer

    folder = bundled_weights() / SHIPPED / "base" / "tokenizer"
    padding = {"pad_token": "!"} if encoder.is_open_clip else {}
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True, **padding)
