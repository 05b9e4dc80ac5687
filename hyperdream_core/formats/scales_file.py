"""Scales files: one subject as changes of a quantised base's scales, 0.4 MB a noise band for SD 1.5's attention.

A file holds, for each band k, `band<k>.scale_out` and, if the input side was trained too, `band<k>.scale_in`: the
relative changes of all layers in the family's order, one after the other, in half precision, which is 1/100,000 of the
scale where it changes by a hundredth. The bands are a JSON list of half-open [start, end) in the metadata, rising;
outside of them the base's own scales act. `integers` is the digest of the codes that the scales were trained on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..bases import TARGET_SETS, get_base
from ..errors import BaseMismatchError, FileFormatError, quoted
from ..ops.bands import Band
from ..ops.quantize import KINDS as QUANTIZATIONS
from ..ops.scales import ScaleChange
from ..tuned_scales import SIDES, TunedScales
from .container import read_container, write_container
from .facts import Facts

KIND = "hyperdream-scales"
NEWEST_VERSION = 1
_LARGEST = 100.0
"""magnitude of a relative change; those of trained scales stay below 1"""


def write_scales(path: Path | str, scales: TunedScales, dtype: torch.dtype = torch.float16) -> None:
    """Write a scales file, atomically.

    Args:
        path: of the file; its folder exists.
        scales: what to write.
        dtype: of the stored changes.

    Raises:
        OutputError: the folder cannot be written, the disk is full, or a number is not finite in `dtype`.
    """
    metadata = {
        "family": scales.family,
        "target_set": scales.target_set,
        "layers_digest": get_base(scales.family).layers_digest(scales.target_set),
        "quantization": scales.quantization,
        "integers": scales.integers,
        "sides": scales.sides,
        "bands": json.dumps(scales.bands),
        "identifier": scales.identifier,
        "class_noun": scales.class_noun,
        "made_by": json.dumps(dict(scales.made_by), sort_keys=True, ensure_ascii=False),
    }
    tensors: dict[str, Tensor] = {}
    for k, changes in enumerate(scales.scales):
        for side in _sides(scales.sides):
            parts: list[Tensor] = [getattr(changes[layer.name], side) for layer in scales.layers]
            tensors[f"band{k}.{side}"] = torch.cat([part.detach().cpu() for part in parts]).to(dtype)
    write_container(path, KIND, NEWEST_VERSION, metadata, tensors)


def read_scales(path: Path | str, family: str | None = None, integers: str | None = None) -> TunedScales:
    """The scales in a file, as float32.

    Args:
        path: of the file.
        family: of the base they are wanted for; left out, any known family will do.
        integers: digest of that base's codes; left out, `TunedScales.check_integers` is for the caller to ask.

    Raises:
        FileFormatError: damaged, altered, hostile, newer, or not a scales file.
        BaseMismatchError: made for another base family, for other layers, or on other integers.
    """
    path = Path(path)
    metadata, tensors = read_container(path, KIND, NEWEST_VERSION)
    facts = Facts(path, metadata)
    made_for = facts.family("family", family)
    target_set, sides = facts.one_of("target_set", TARGET_SETS), facts.one_of("sides", SIDES)
    facts.check_digest("layers_digest", get_base(made_for).layers_digest(target_set), "list of layers")
    bands = facts.bands("bands")
    scales = TunedScales(
        family=made_for,
        target_set=target_set,
        quantization=facts.one_of("quantization", QUANTIZATIONS),
        integers=_digest(facts),
        scales=_changes(path, tensors, made_for, target_set, sides, bands),
        bands=bands,
        identifier=facts.words("identifier"),
        class_noun=facts.words("class_noun"),
        made_by=facts.facts("made_by"),
    )
    if integers is not None:
        try:
            scales.check_integers(integers)
        except BaseMismatchError as error:
            raise BaseMismatchError(f"{path.name}: {error}") from error
    return scales


def _changes(
    path: Path, tensors: Mapping[str, Tensor], family: str, target_set: str, sides: str, bands: tuple[Band, ...]
) -> tuple[dict[str, ScaleChange], ...]:
    layers = get_base(family).layers(target_set)
    sizes = {"scale_out": [one.out_features for one in layers], "scale_in": [one.in_features for one in layers]}
    wanted = {f"band{k}.{side}": (sum(sizes[side]),) for k in range(len(bands)) for side in _sides(sides)}
    for name in [*tensors, *wanted]:
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != wanted.get(name):
            raise FileFormatError(
                path,
                f"has {quoted(name, 120)} of the shape {found}, but its metadata needs {wanted.get(name)} (None: there "
                "is no such tensor). Get the file again.",
            )
        largest = float(tensors[name].abs().max())
        if largest > _LARGEST:
            raise FileFormatError(
                path,
                f"{name!r} holds changes as large as {largest:g} times the scale, but those that are trained stay far "
                f"below {_LARGEST:g}. The file was altered; get it again.",
            )
    parts = {name: tensors[name].float().split(sizes[name.partition(".")[2]]) for name in wanted}
    return tuple(
        {
            layer.name: ScaleChange(*(parts[f"band{k}.{side}"][index] for side in _sides(sides)))
            for index, layer in enumerate(layers)
        }
        for k in range(len(bands))
    )


def _sides(sides: str) -> tuple[str, ...]:
    return ("scale_out",) if sides == "out" else ("scale_out", "scale_in")


def _digest(facts: Facts) -> str:
    text = facts.text("integers")
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise FileFormatError(
            facts.path, f"has the digest {quoted(text)}, but 64 hexadecimal digits are expected. Get the file again."
        )
    return text
