"""What a corpus says of itself in JSON: `corpus.json` what it is, and `PART.json` which shards of a part are there.

`corpus.json` is written once, when the corpus is begun. Every part (pictures, latents, features, identities) has a
record of its own, so that two programs that make two parts at once never write to one file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ...config import config_from_json, config_to_json
from ...errors import ConfigError, FileFormatError, quoted
from ...json_text import read_json
from ...whole_file import write_whole

FORMAT, VERSION = "hyperdream-corpus", 1
"""What `corpus.json` and every record say they are, and the newest version that this release reads and writes."""
MANIFEST = "corpus.json"
_MOST_BYTES = 32_000_000
_MOST_SHARDS = 100_000

Content = TypeVar("Content")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a corpus is, decided when it is begun."""

    size: int
    """Side of its pictures, px."""
    class_noun: str = "face"
    """What its subjects are."""
    held_out: float = 0.05
    """Share of the subjects that no training sees, 0..1."""
    licence: str = ""
    """By what right the pictures are used: a licence, or whose consent."""
    sources: tuple[Mapping[str, Any], ...] = ()
    """Where the subjects come from: `kind`, and facts of that kind."""
    plan: str
    """SHA-256 (hex) of everything that decides which pictures it holds."""
    shards: int
    """How many shards each of its parts has."""

    def __post_init__(self) -> None:
        if self.size % 8 or not 32 <= self.size <= 4096:
            raise ConfigError(f"size must be a multiple of 8 from 32 to 4096 px, got {self.size}")
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"held_out must lie in 0..1 and below 1, got {self.held_out:g}")
        if not 1 <= self.shards <= _MOST_SHARDS:
            raise ConfigError(f"shards must lie in 1..{_MOST_SHARDS:,}, got {self.shards:,}")


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One finished shard."""

    bytes: int
    """Of its file."""
    sha256: str
    """Of its file, hex."""
    of: str = ""
    """SHA-256 (hex) of the shard of pictures that it was made from; empty for those themselves."""


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """What is there of one part."""

    part: str
    """Its name, with which the names of its files begin."""
    facts: Mapping[str, Any]
    """All that decides it, as JSON values: the base, the encoder."""
    shards: Mapping[str, ShardEntry] = field(default_factory=dict)
    """Number of a finished shard, as a text -> what it is."""

    def entry(self, index: int) -> ShardEntry | None:
        """Of the shard of that number; None if it is still to be made."""
        return self.shards.get(str(index))

    @property
    def bytes(self) -> int:
        """Of all its shards."""
        return sum(entry.bytes for entry in self.shards.values())


def read_manifest(folder: Path) -> Manifest:
    """What the corpus in a folder is.

    Raises:
        FileFormatError: there is none, it is damaged, or of a newer release.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise FileFormatError(
            folder, f"is no corpus, for it has no {MANIFEST}. `hyperdream corpus collect` makes one of a folder."
        )
    return _read(path, Manifest)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `corpus.json`, whole or not at all.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    _write(folder / MANIFEST, manifest)


def read_record(folder: Path, part: str) -> PartRecord | None:
    """What is there of a part of the corpus in a folder; None if it was never begun.

    Raises:
        FileFormatError: its record is damaged, or of a newer release.
    """
    path = folder / f"{part}.json"
    if not path.exists():
        return None
    record = _read(path, PartRecord)
    if record.part != part:
        raise FileFormatError(
            path, f"is the record of {quoted(record.part)}, but one of {part!r} is expected. Give it its name back."
        )
    return record


def write_record(folder: Path, record: PartRecord) -> None:
    """Write a part's record, whole or not at all.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    _write(folder / f"{record.part}.json", record)


def shard_path(folder: Path, part: str, index: int) -> Path:
    """Where the shard of that number lies."""
    return folder / f"{part}-{index:05d}.safetensors"


def digest_of(facts: Any) -> str:
    """SHA-256 (hex) of JSON values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _write(path: Path, content: Any) -> None:
    data = {"format": FORMAT, "version": VERSION, **config_to_json(content)}
    write_whole(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def _read(path: Path, cls: type[Content]) -> Content:
    data = read_json(path, most=_MOST_BYTES)
    if data.pop("format", None) != FORMAT:
        raise FileFormatError(path, "does not say that it belongs to a corpus. Choose the folder of one.")
    version = data.pop("version", None)
    if type(version) is not int or version < 1:
        raise FileFormatError(path, f"has version {quoted(version)}, but a whole number is expected. Get it again.")
    if version > VERSION:
        raise FileFormatError(
            path, f"has version {version}, but this release reads up to {VERSION}. Update HyperDream."
        )
    try:
        return config_from_json(cls, data)
    except ConfigError as error:
        raise FileFormatError(path, f"was altered ({error}). Get it again, or make the corpus anew.") from error
