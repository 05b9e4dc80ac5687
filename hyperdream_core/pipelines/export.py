"""An identity as an ordinary LoRA file, for every program that loads those."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ..config import check_at_most
from ..errors import ConfigError
from ..formats.lora_file import LoraMetadata, write_lora
from ..identity import Identity
from ..whole_file import write_whole

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
HOST_FAMILIES = {"sd15": "SD1", "sd2": "SD2", "sdxl": "SDXL"}
"""Families that Automatic1111 and Forge can load, as they call them."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Settings of a LoRA export."""

    dialect: Literal["kohya", "diffusers"] = "kohya"
    """Names of the layers: kohya's for ComfyUI, A1111, Forge and diffusers, or diffusers' own for PEFT."""
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    """Numbers in the file."""
    strength: float = 1.0
    """Factor to put into the file for good; 1 leaves the dial to the user."""
    title: str = ""
    """Name that LoRA browsers show; empty takes the file's."""
    license: str = ""
    """Licence to state in the file; empty states none."""

    def __post_init__(self) -> None:
        check_at_most(self, strength=100)
        if self.dtype not in _DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(_DTYPES)}, got {self.dtype!r}")


def export_lora(identity: Identity, path: Path | str, config: ExportConfig | None = None, thumbnail: str = "") -> Path:
    """Write the identity as a LoRA; exact but for the rounding of the numbers.

    Args:
        identity: to export.
        path: of the file, whose folder exists.
        config: settings.
        thumbnail: preview as a data URI, or empty.

    Returns:
        The path.

    Raises:
        OutputError: the folder cannot be written or the disk is full.
    """
    config, path = config or ExportConfig(), Path(path)
    metadata = LoraMetadata(
        title=config.title or path.stem,
        identifier=identity.identifier,
        class_noun=identity.class_noun,
        thumbnail=thumbnail,
        license=config.license,
        made_by=identity.made_by,
    )
    pairs = identity.scaled(config.strength).expand()
    write_lora(
        path,
        pairs,
        family=identity.family,
        dialect=config.dialect,
        metadata=metadata,
        dtype=_DTYPES[config.dtype],
    )
    return path


def write_lora_words(path: Path, identity: Identity) -> Path:
    """Write `NAME.json` beside a LoRA: the words and the weight that LoRA browsers put into the prompt.

    Args:
        path: of the LoRA or identity.
        identity: that it holds.

    Returns:
        The path of what was written.

    Raises:
        OutputError: the folder cannot be written or the disk is full.
    """
    trigger = f"a {identity.identifier} {identity.class_noun}"
    words = {
        "description": f"Made by HyperDream; write '{trigger}'.",
        "sd version": HOST_FAMILIES.get(identity.family, "Other"),
        "activation text": trigger,
        "preferred weight": 1.0,
        "notes": identity.made_by.get("notes", ""),
    }
    beside = path.with_suffix(".json")
    write_whole(beside, json.dumps(words, indent=4) + "\n")
    return beside
