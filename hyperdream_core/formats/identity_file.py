"""Identity files: the LiDB coefficients of one subject, under 100 KB at rank 1.

A file holds coefficients only; the bases are drawn again from the recipe that its metadata names. Two layouts:

- `layers`: per layer `<kohya name>.lidb_down` (r, p) and `.lidb_up` (a, r), so that a host can match single keys.
- `stacked`: per size `lidb_down_<p>` (layers, r, p) and `lidb_up_<a>` (layers, a, r), layers in the family's order.
  The header, half of a file in the first layout, shrinks to about a kilobyte.

An identity that is not constant has its coefficients once for each band k of the noise, `<kohya name>.band<k>.lidb_up`
or `band<k>.lidb_up_<a>`, and in its metadata `bands`, a JSON list of half-open [start, end), rising. Such a file is of
version 2, which releases that know no bands refuse by name; a constant one is of version 1, byte for byte as theirs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..bases import TARGET_SETS, Layer, get_base
from ..bases.keys import to_kohya
from ..errors import ConfigError, FileFormatError, HyperDreamError, quoted
from ..identity import Identity, coefficient_shapes, entry_name
from ..ops import lidb
from ..ops.bands import WHOLE, Band
from ..ops.lidb import LidbCoefficients
from .container import read_container, read_tensors, write_container
from .facts import Facts

KIND = "hyperdream-identity"
CONSTANT_VERSION, NEWEST_VERSION = 1, 2
"""Of files with one set of coefficients for all noise levels, and of those with one for each band."""
_LARGEST = 1000.0
"""magnitude of a coefficient; those of trained identities are below 10"""
LAYOUTS = ("layers", "stacked")


def write_identity(
    path: Path | str, identity: Identity, dtype: torch.dtype = torch.float16, layout: str | None = None
) -> None:
    """Write an identity file, atomically.

    Args:
        path: of the file; its folder exists.
        identity: what to write.
        dtype: of the stored coefficients.
        layout: `layers` or `stacked`; left out, `layers` for 16 bit numbers, the form to share and to drop into a
            host's LoRA folder, and `stacked` for wider ones, the form to keep.

    Raises:
        OutputError: the folder cannot be written, the disk is full, or a number is not finite in `dtype`.
    """
    if layout is None:
        layout = "layers" if dtype in (torch.float16, torch.bfloat16) else "stacked"
    if layout not in LAYOUTS:
        raise ConfigError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")
    family = get_base(identity.family)
    metadata = {} if identity.is_constant else {"bands": json.dumps(identity.bands)}
    metadata |= {
        "family": identity.family,
        "target_set": identity.target_set,
        "layers_digest": family.layers_digest(identity.target_set),
        "rank": str(identity.rank),
        "down_dim": str(identity.down_dim),
        "up_dim": str(identity.up_dim),
        "basis_recipe": lidb.BASIS_RECIPE,
        "basis_digest": _basis_digest(identity.family, identity.target_set, identity.down_dim, identity.up_dim),
        "layout": layout,
        "identifier": identity.identifier,
        "class_noun": identity.class_noun,
        "made_by": json.dumps(dict(identity.made_by), sort_keys=True, ensure_ascii=False),
    }
    dims = identity.rank, identity.down_dim, identity.up_dim
    names = _entries(identity.family, identity.layers, identity.bands, *dims, layout)
    tensors = {}
    for key, (members, _) in names.items():
        side = "down" if "lidb_down" in key else "up"
        stack = torch.stack([getattr(identity.coefficients[name], side) for name in members])
        tensors[key] = (stack if layout == "stacked" else stack[0]).to(dtype)
    version = CONSTANT_VERSION if identity.is_constant else NEWEST_VERSION
    write_container(path, KIND, version, metadata, tensors)


def read_identity(path: Path | str, family: str | None = None) -> Identity:
    """The identity in a file, as float32.

    Args:
        path: of the file.
        family: of the base it is wanted for; left out, any known family will do.

    Raises:
        FileFormatError: damaged, altered, hostile, newer, or not an identity.
        BaseMismatchError: made for another base family than `family`, or for other layers or another basis.
    """
    path = Path(path)
    metadata, tensors = read_container(path, KIND, NEWEST_VERSION)
    facts = Facts(path, metadata)
    made_for = facts.family("family", family)
    target_set, layout = facts.one_of("target_set", TARGET_SETS), facts.one_of("layout", LAYOUTS)
    rank, down_dim, up_dim = (facts.whole_number(key) for key in ("rank", "down_dim", "up_dim"))
    base = get_base(made_for)
    facts.check_digest("layers_digest", base.layers_digest(target_set), "list of layers")
    if max(down_dim, up_dim) > lidb.MOST_COLUMNS:
        raise FileFormatError(
            path,
            f"has bases of {down_dim} and {up_dim} columns, but at most {lidb.MOST_COLUMNS} are drawn. Get it again.",
        )
    bands = _bands(facts)
    entries = _entries(made_for, base.layers(target_set), bands, rank, down_dim, up_dim, layout)
    _check_tensors(path, tensors, {key: shape for key, (_, shape) in entries.items()})
    # Last, because the bases are drawn for it.
    facts.check_digest("basis_digest", _basis_digest(made_for, target_set, down_dim, up_dim), "auxiliary basis")
    parts: dict[str, dict[str, Tensor]] = {}
    for key, (members, _) in entries.items():
        side = "down" if "lidb_down" in key else "up"
        stack = tensors[key].float()
        for name, tensor in zip(members, stack if layout == "stacked" else [stack], strict=True):
            parts.setdefault(name, {})[side] = tensor
    return Identity(
        family=made_for,
        target_set=target_set,
        rank=rank,
        down_dim=down_dim,
        up_dim=up_dim,
        coefficients={name: LidbCoefficients(**sides) for name, sides in parts.items()},
        bands=bands,
        identifier=facts.words("identifier"),
        class_noun=facts.words("class_noun"),
        made_by=facts.facts("made_by"),
    )


def inspect_identity(path: Path | str) -> dict[str, Any]:
    """What a file says about itself; for a refused file `readable` is False and `problem` says why."""
    path = Path(path)
    report: dict[str, Any] = {"file": str(path), "readable": True, "problem": None}
    try:
        report["bytes"] = path.stat().st_size
        report["metadata"] = read_tensors(path)[0]
        identity = read_identity(path)
    except HyperDreamError as error:
        return report | {"readable": False, "problem": str(error)}
    except OSError as error:
        return report | {"readable": False, "problem": f"{path}: cannot be opened ({error.strerror}). Check the path."}
    norms = identity.distances(identity.scaled(0.0))
    return report | {
        "family": identity.family,
        "target_set": identity.target_set,
        "layers": len(identity.layers),
        "bands": [list(band) for band in identity.bands],
        "rank": identity.rank,
        "down_dim": identity.down_dim,
        "up_dim": identity.up_dim,
        "numbers": sum(c.down.numel() + c.up.numel() for c in identity.coefficients.values()),
        "identifier": identity.identifier,
        "class_noun": identity.class_noun,
        "made_by": dict(identity.made_by),
        "delta_norm": max(norms),
        "delta_norm_of_bands": list(norms),
    }


def _bands(facts: Facts) -> tuple[Band, ...]:
    """The noise bands that a file names; one of the first version has no say in it."""
    if int(facts.text("version")) == CONSTANT_VERSION:
        if "bands" in facts.metadata:
            raise FileFormatError(
                facts.path, f"has noise bands, which format version {CONSTANT_VERSION} knows nothing of. Get it again."
            )
        return (WHOLE,)
    return facts.bands("bands")


def _entries(
    family: str, layers: Sequence[Layer], bands: Sequence[Band], rank: int, down_dim: int, up_dim: int, layout: str
) -> dict[str, tuple[list[str], tuple[int, ...]]]:
    """Tensor name -> the entries of `Identity.coefficients` that it holds, and its shape."""
    members: dict[str, list[str]] = {}
    shapes: dict[str, tuple[int, int]] = {}
    for k in range(len(bands)):
        mark = entry_name("", bands, k)  # "" of a constant identity, and else ".band<k>"
        for layer in layers:
            down, up = coefficient_shapes(layer, rank, down_dim, up_dim)
            stem = to_kohya(layer.name, get_base(family)) + mark + "."
            ends = ("lidb_down", "lidb_up")
            if layout == "stacked":
                stem, ends = (f"{mark[1:]}." if mark else ""), (f"lidb_down_{down[1]}", f"lidb_up_{up[0]}")
            for end, shape in zip(ends, (down, up), strict=True):
                members.setdefault(stem + end, []).append(layer.name + mark)
                shapes[stem + end] = shape
    if layout == "layers":
        return {key: (names, shapes[key]) for key, names in members.items()}
    return {key: (names, (len(names), *shapes[key])) for key, names in members.items()}


def _basis_digest(family: str, target_set: str, down_dim: int, up_dim: int) -> str:
    return lidb.basis_digest(family, get_base(family).layers(target_set), down_dim, up_dim)


def _check_tensors(path: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name in [*tensors, *shapes]:
        if name not in shapes:
            raise FileFormatError(
                path,
                f"holds {quoted(name, 120)}, which no identity of its kind has. Update HyperDream, or get the file "
                "again.",
            )
        if name not in tensors:
            raise FileFormatError(
                path, f"lacks {name!r}, one of {len(shapes)} tensors that its metadata promises. Get the file again."
            )
        if tuple(tensors[name].shape) != shapes[name]:
            raise FileFormatError(
                path,
                f"{name!r} has shape {tuple(tensors[name].shape)}, but its metadata needs {shapes[name]}. Get the file "
                "again.",
            )
        largest = float(tensors[name].abs().max()) if tensors[name].numel() else 0.0
        if not largest <= _LARGEST:
            raise FileFormatError(
                path,
                f"{name!r} holds numbers as large as {largest:g}, but those of an identity stay far below "
                f"{_LARGEST:g}, "
                "and such a one would draw no picture of anything. The file was altered; get it again.",
            )
