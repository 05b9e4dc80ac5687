"""A hypernetwork as one safetensors file: its tensors, and in the metadata its configuration and where it comes from.

The formats know no modules, so a file's content is plain: `pipelines.stored_hypernetwork` makes the network of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..bases import get_base
from ..errors import ConfigError, FileFormatError, quoted
from ..json_text import JsonTextError, parse_json
from ..ops.lidb import BASIS_RECIPE
from .container import read_container, write_container

KIND = "hyperdream-hypernetwork"
NEWEST_VERSION = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class HypernetworkFile:
    """What a hypernetwork file holds."""

    config: Mapping[str, Any]
    """JSON form of `models.hypernetwork.HypernetworkConfig`, among it `family` and `target_set`."""
    tensors: Mapping[str, Tensor]
    """The state of the network, image encoder included."""
    base_fingerprint: str = ""
    """Of the base it was trained on; empty if unknown. It works on relatives, less well."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Facts about the training, as JSON values: steps, data, seconds, figures."""


def write_hypernetwork(path: Path | str, contents: HypernetworkFile, dtype: torch.dtype | None = None) -> None:
    """Write the file, atomically, in `dtype` or as the tensors are.

    Raises:
        OutputError: the folder cannot be written, the disk is full, or a tensor is not finite.
    """
    base = get_base(contents.config["family"])
    metadata = {
        "config": json.dumps(contents.config, sort_keys=True),
        "layers_digest": base.layers_digest(contents.config["target_set"]),
        "basis_recipe": BASIS_RECIPE,
        "base_fingerprint": contents.base_fingerprint,
        "training": json.dumps(contents.training, sort_keys=True),
    }
    tensors = {name: tensor.to(dtype or tensor.dtype) for name, tensor in contents.tensors.items()}
    write_container(path, KIND, NEWEST_VERSION, metadata, tensors)


def read_hypernetwork(path: Path | str) -> HypernetworkFile:
    """Read and check a file: whole, finite, for a base family and layers of this release, and for its bases.

    Raises:
        FileFormatError: otherwise.
    """
    path = Path(path)
    metadata, tensors = read_container(path, KIND, NEWEST_VERSION)
    config = _json_object(path, metadata, "config")
    try:
        digest = get_base(str(config.get("family"))).layers_digest(str(config.get("target_set")))
    except ConfigError as error:
        raise FileFormatError(
            path, f"is for layers that this release does not know ({error}). Update HyperDream, or get another file."
        ) from error
    for name, expected in (("layers_digest", digest), ("basis_recipe", BASIS_RECIPE)):
        if metadata.get(name) != expected:
            raise FileFormatError(
                path,
                f"has {name} {quoted(metadata.get(name, 'missing'), 80)}, but this release has {expected!r}: its "
                "predictions "
                "would land in other layers or bases. Train it again with this release.",
            )
    return HypernetworkFile(
        config=config,
        tensors=tensors,
        base_fingerprint=metadata.get("base_fingerprint", ""),
        training=_json_object(path, metadata, "training"),
    )


def _json_object(path: Path, metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    try:
        return dict(parse_json(metadata.get(name, "")))
    except JsonTextError as error:
        raise FileFormatError(
            path, f"has no readable {name!r} in its metadata, but one that {error}. Get the file again."
        ) from error
