"""Subjects in memory and in a shard: who they are, which pictures show them, and what was left out and why.

A shard of pictures holds the references and the pictures of all its subjects in two stacks, subject by subject, and
in its metadata the table that says whose they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...config import config_from_json, config_to_json
from ...errors import ConfigError, FileFormatError
from ...json_text import JsonTextError, parse_json

_MOST_BYTES = 64_000_000


@dataclass(frozen=True, kw_only=True)
class SubjectEntry:
    """What the table says of one subject."""

    name: str
    """Decides whether it is held out, whatever the corpus."""
    references: tuple[int, ...]
    """Of each reference, the number of the photograph that it was cut from."""
    pictures: tuple[int, ...]
    """The same of each picture: a reference and a picture of one photograph invite copying."""
    captions: tuple[str, ...]
    """Of each picture, what it shows besides the subject; empty for nothing."""

    def __post_init__(self) -> None:
        if len(self.captions) != len(self.pictures) or not self.references or not self.pictures:
            raise ConfigError(
                f"subject {self.name[:80]!r} has {len(self.references)} references, {len(self.pictures)} pictures and "
                f"{len(self.captions)} captions, but needs some of each, and a caption for each picture"
            )


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A picture, or a whole subject, that was left out."""

    what: str
    """Its name, as a person finds it again."""
    why: str
    """The reason."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """One subject with its pictures."""

    entry: SubjectEntry
    references: Tensor
    """(r, 3, size, size) uint8"""
    pictures: Tensor
    """(p, 3, size, size) uint8"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """The subjects of one shard."""

    subjects: Sequence[Subject] = ()
    rejected: Sequence[Rejected] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Table:
    """What the metadata of a shard of pictures says."""

    subjects: tuple[SubjectEntry, ...]
    rejected: tuple[Rejected, ...]


def pack(group: Group, size: int) -> tuple[dict[str, str], dict[str, Tensor]]:
    """A group as the metadata and tensors of a shard; `unpack` reads the metadata."""
    empty = torch.empty(0, 3, size, size, dtype=torch.uint8)
    tensors = {
        "references": torch.cat([empty, *(one.references for one in group.subjects)]),
        "pictures": torch.cat([empty, *(one.pictures for one in group.subjects)]),
    }
    entries = [config_to_json(one.entry) for one in group.subjects]
    rejected = [config_to_json(one) for one in group.rejected]
    return {"subjects": json.dumps(entries), "rejected": json.dumps(rejected)}, tensors


def unpack(path: Path, metadata: Mapping[str, str]) -> Table:
    """The table of a shard.

    Raises:
        FileFormatError: it is not there, or was altered.
    """
    try:
        values: dict[str, Any] = {
            name: parse_json(metadata.get(name, ""), list, most=_MOST_BYTES) for name in ("subjects", "rejected")
        }
        return config_from_json(Table, values)
    except (JsonTextError, ConfigError) as error:
        raise FileFormatError(
            path, f"has no readable table of subjects ({error}). Remove it, and collect it again."
        ) from error


def is_held_out(name: str, share: float) -> bool:
    """Whether a subject of that name is among the `share` (0..1) that no training sees.

    A hash decides, so that a person is held out of every corpus alike, however many others there are and on whichever
    machine, and stays held out when the share grows.
    """
    number = int.from_bytes(hashlib.sha256(name.encode("utf-8", "backslashreplace")).digest()[:8], "big")
    return number < share * 2**64
