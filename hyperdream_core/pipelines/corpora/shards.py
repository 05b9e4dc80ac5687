"""A part of a corpus, made shard by shard: whatever is there already stays, and a kill loses at most the shard at work.

A shard names in its own metadata what it is, so that one that was finished but not yet recorded is found again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ...config import changed_setting
from ...errors import ConfigError, FileFormatError
from ...formats.container import open_mapped, write_container
from ...whole_file import remove_left_behind
from .manifest import VERSION, PartRecord, ShardEntry, digest_of, read_record, shard_path, write_record

Say = Callable[[str], None]
"""Called with a sentence for people."""

ANEW = {
    "pictures": "the same `hyperdream corpus collect` makes it anew",
    "latents": "`hyperdream corpus encode` makes it anew",
    "features": "`hyperdream corpus encode` with --image-encoder makes it anew",
    "identities": "the same `hyperdream corpus invent` makes it anew",
}
"""Part -> how a damaged shard of it is had again."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Contents:
    """What a shard is filled with."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    numbers: Collection[str] = ()
    """tensors that may be whole numbers"""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part as it is to be."""

    folder: Path
    name: str
    facts: Mapping[str, Any]
    """all that decides it, as JSON values"""
    made_of: Sequence[str]
    """of each shard, the digest of the shard of pictures that it is made from; empty for those themselves"""

    def begin(self, say: Say) -> PartRecord:
        """What is there of it by now, each shard looked at; those that are damaged or of other pictures are not.

        Raises:
            ConfigError: the part was made, or begun, with other facts.
            FileFormatError: its record is damaged.
        """
        remove_left_behind(self.folder)
        record = read_record(self.folder, self.name) or PartRecord(part=self.name, facts=self.facts)
        changed = changed_setting(record.facts, json.loads(json.dumps(self.facts)))
        if changed:
            raise ConfigError(
                f"{self.folder}: its {self.name} were made with {changed}. Ask for the same again, or remove "
                f"{self.name}.json and the files {self.name}-*.safetensors, and they are made anew."
            )
        found: dict[str, ShardEntry] = {}
        for index, of in enumerate(self.made_of):
            entry = self._found(index, of, record.entry(index), say)
            if entry is not None:
                found[str(index)] = entry
        return replace(record, facts=self.facts, shards=found)

    def write(self, index: int, contents: Contents) -> ShardEntry:
        """Write a shard, whole or not at all.

        Raises:
            OutputError: the disk is full, or a number is not finite.
        """
        path = shard_path(self.folder, self.name, index)
        identity = {"facts": digest_of(self.facts), "shard": str(index), "of": self.made_of[index]}
        write_container(
            path, kind_of(self.name), VERSION, {**contents.metadata, **identity}, contents.tensors, contents.numbers
        )
        return _entry(path, self.made_of[index])

    def _found(self, index: int, of: str, entry: ShardEntry | None, say: Say) -> ShardEntry | None:
        """The entry of a shard that is there and whole, recorded or not."""
        path = shard_path(self.folder, self.name, index)
        if not path.exists():
            if entry is not None:
                say(f"{path}: is missing; it is made anew")
            return None
        expected = entry if entry is not None and entry.of == of else None
        try:
            check_shard(path, self.name, self.facts, index, of, expected)
        except FileFormatError as error:
            if entry is not None:
                say(f"{error} It is made anew.")
            return None
        return expected or _entry(path, of)


def make_part(part: Part, make: Callable[[int], Contents], say: Say) -> PartRecord:
    """Make the shards of a part that are not there yet, in order, and record each as soon as it is written.

    Args:
        part: to make.
        make: fills the shard of a number.
        say: told of what is made anew.

    Raises:
        ConfigError, FileFormatError, OutputError: as `Part`; what is finished stays.
    """
    record = part.begin(say)
    write_record(part.folder, record)
    for index in range(len(part.made_of)):
        if record.entry(index) is None:
            entry = part.write(index, make(index))
            shards = {**record.shards, str(index): entry}
            record = replace(record, shards=dict(sorted(shards.items(), key=lambda item: int(item[0]))))
            write_record(part.folder, record)
    return record


def check_shard(
    path: Path, part: str, facts: Mapping[str, Any], index: int, of: str, entry: ShardEntry | None
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and mapped tensors of a shard that is what it should be, by its header and its size alone.

    Raises:
        FileFormatError: it is missing, damaged, of another size than recorded, or of another corpus.
    """
    metadata, tensors = open_mapped(path, kind_of(part), VERSION)
    wanted = {"facts": digest_of(facts), "shard": str(index), "of": of}
    for name, value in wanted.items():
        if metadata.get(name) != value:
            things = {"facts": "with other settings", "shard": "as another shard", "of": "of other pictures"}
            raise FileFormatError(path, f"was made {things[name]} than this corpus has there; {ANEW[part]}.")
    size = path.stat().st_size
    if entry is not None and size != entry.bytes:
        raise FileFormatError(path, f"has {size:,} bytes, but {entry.bytes:,} were written; {ANEW[part]}.")
    return metadata, tensors


def check_digest(path: Path, part: str, entry: ShardEntry) -> None:
    """See that every byte of a shard is as it was written.

    Raises:
        FileFormatError: it is not.
    """
    if sha256_of(path) != entry.sha256:
        raise FileFormatError(
            path, f"is damaged: its bytes are not those that were written. Remove it, and {ANEW[part]}."
        )


def sha256_of(path: Path) -> str:
    """Of a file's bytes, hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


def kind_of(part: str) -> str:
    """What a shard's file says it is."""
    return f"hyperdream-corpus-{part}"


def _entry(path: Path, of: str) -> ShardEntry:
    return ShardEntry(bytes=path.stat().st_size, sha256=sha256_of(path), of=of)
