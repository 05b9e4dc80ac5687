"""The frozen image encoder of a predictor to be: a vision transformer from a folder, or another predictor's own.

Nothing is fetched: the folder is one of `transformers`' (config.json and model.safetensors) for CLIP, DINOv2, SigLIP,
DeiT or ViT. Of CLIP and SigLIP the vision half is taken where both halves are there.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import ConfigError, FileFormatError, quoted
from ...formats.container import payload_digest
from ...json_text import read_json
from ...models.image_encoder import (
    VISION_TRANSFORMERS,
    ConvImageEncoder,
    VitImageEncoder,
    build_image_encoder,
    building_errors,
)
from ...models.one_thread import BUILDING
from ...ops.finite import sound
from .hypernetwork_predictor import read_hypernetwork_predictor

_HALVES = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
"""Models with a vision half -> the type of that."""
_UNUSED = re.compile(r"^(?:vision_model\.)?(?:pooler|head)\.")
"""Of the model's own pooling, which features do not pass through."""


@dataclass(frozen=True, kw_only=True)
class FrozenEncoder:
    """An image encoder that is not trained, and what tells it from others."""

    network: ConvImageEncoder | VitImageEncoder
    name: str
    """as a person finds it again"""
    config: Mapping[str, Any]
    """that `models.image_encoder.build_image_encoder` makes it of"""
    digest: str
    """SHA-256 (hex) of its configuration and weights"""

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device


def load_image_encoder(place: Path, device: torch.device | str = "cpu") -> FrozenEncoder:
    """The image encoder in a folder of `transformers`, or in a predictor's file.

    Raises:
        FileFormatError: there is none, it has no weights, or not those of its configuration.
        MissingDependencyError: the package `transformers` is not installed.
    """
    if place.is_dir():
        return _of_folder(place, device)
    network = read_hypernetwork_predictor(place).network
    assert isinstance(network.encoder, (ConvImageEncoder, VitImageEncoder))
    return _frozen(network.encoder, place, network.config.image_encoder, device)


def _of_folder(folder: Path, device: torch.device | str) -> FrozenEncoder:
    files = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not files:
        lacks = "config.json" if files else "model.safetensors"
        raise FileFormatError(
            folder,
            f"has no {lacks}, so it is no image encoder that can be loaded. Name a folder of a `transformers` vision "
            "model saved as safetensors, or a predictor's file.",
        )
    config = _config_of(folder)
    try:
        with BUILDING:
            network = build_image_encoder(config)
    except ConfigError as error:
        raise FileFormatError(
            folder / "config.json", f"describes no image encoder that can be built ({error}). Name another folder."
        ) from error
    assert isinstance(network, VitImageEncoder)
    _fill(network, folder)
    return _frozen(network, folder, config, device)


def _frozen(
    network: ConvImageEncoder | VitImageEncoder, place: Path, config: Mapping[str, Any], device: torch.device | str
) -> FrozenEncoder:
    network = network.to(device).float().train(False).requires_grad_(False)
    state = {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
    text = json.dumps(config, sort_keys=True, default=str) + payload_digest(state)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return FrozenEncoder(network=network, name=place.resolve().name, config=dict(config), digest=digest)


def _config_of(folder: Path) -> dict[str, Any]:
    """The folder's configuration as ours, with only the settings that files may carry."""
    path = folder / "config.json"
    found = read_json(path, finite=False)
    kind = str(found.get("model_type"))
    if kind in _HALVES:
        kind, found = _HALVES[kind], found.get("vision_config")
    if kind not in VISION_TRANSFORMERS or not isinstance(found, dict):
        known = ", ".join(sorted({*VISION_TRANSFORMERS, *_HALVES}))
        raise FileFormatError(path, f"is of the model type {quoted(kind)}, but one of {known} is expected. Name one.")
    model = {name: value for name, value in found.items() if _decides(name, value)}
    config: dict[str, Any] = {"kind": "vit", "model_type": kind, "model": model}
    if (folder / "preprocessor_config.json").is_file():
        seen = read_json(folder / "preprocessor_config.json", finite=False)
        for name in ("mean", "std"):
            if isinstance(seen.get(f"image_{name}"), list):
                config[name] = seen[f"image_{name}"]
    return config


_SIZES = {
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "image_size",
    "patch_size", "hidden_act", "layer_norm_eps", "attention_dropout", "mlp_ratio", "layerscale_value", "qkv_bias",
    "use_swiglu_ffn", "num_register_tokens", "hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate",
    "projection_dim",
}  # fmt: skip


def _decides(name: str, value: Any) -> bool:
    """Whether a setting is one of a network's shape, and not of a program around it."""
    return name in _SIZES and isinstance(value, (int, float, str))


def _fill(network: VitImageEncoder, folder: Path) -> None:
    """Give the network the weights of the folder, whose tensors only `transformers` knows by all their names."""
    from transformers import AutoModel

    try:
        model, found = AutoModel.from_pretrained(
            folder, config=network.model.config, local_files_only=True, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True,
        )  # fmt: skip
    except building_errors() as error:
        raise FileFormatError(
            folder, f"has no weights that go with its config.json ({str(error)[:200]}). Get the folder again."
        ) from error
    missing = sorted(name for name in found["missing_keys"] if not _UNUSED.match(name))
    if missing:
        raise FileFormatError(
            folder, f"lacks the tensor {missing[0]!r}, which an encoder of its config.json has. Get the folder again."
        )
    state = {name: tensor.float() for name, tensor in model.state_dict().items() if not _UNUSED.match(name)}
    for name, tensor in state.items():
        sound(tensor, f"tensor {name!r} of {folder.name}", "get the folder again")
    network.model.load_state_dict(state, strict=False)
    for name, tensor in network.model.state_dict().items():
        if _UNUSED.match(name):
            # Drawn at random and of no use; at 0 two loadings have one digest.
            tensor.zero_()
