"""A corpus, read: subjects by number, and rows of their pictures, latents, features and identities as tensors.

Everything lies in mapped files, of which only the rows that are taken are read; so many processes share one corpus,
and it may be larger than the memory. Rows are taken by two indices: of the subject, and of the picture among its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ...errors import BaseMismatchError, ConfigError, FileFormatError, quoted
from ...models.image_encoder import ImageFeatures
from ...ops.lidb import LidbCoefficients
from ..progress import Progress, no_progress
from .manifest import Manifest, PartRecord, read_manifest, read_record, shard_path
from .shards import check_digest, check_shard
from .subjects import Rejected, SubjectEntry, is_held_out, unpack

PARTS = ("pictures", "latents", "features", "identities")
"""What a corpus may hold; the first is always there, the others are made of it."""
_REMEDY = {
    "pictures": "the same `hyperdream corpus collect` goes on from there",
    "latents": "`hyperdream corpus encode` makes the rest",
    "features": "`hyperdream corpus encode` with --image-encoder makes the rest",
    "identities": "`hyperdream corpus invent` stores them, and goes on from there",
}
_STACKS = {"references": "pictures", "pictures": "pictures", "latents": "latents", "tokens": "features",
           "pooled": "features"}  # fmt: skip
"""Tensor -> the part that it belongs to; all others are of identities."""
_OF_REFERENCES = {"references", "tokens", "pooled"}
"""Tensors with a row for each reference; those of identities have one for each subject, all others for each picture."""


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a subject's rows are."""

    shard: int
    row: int
    """among the subjects of its shard"""
    reference: int
    """its first one among all of its shard"""
    picture: int


class Corpus:
    """The subjects of one folder; `Corpus.open` looks at every file and reads none of the pictures."""

    def __init__(self, folder: Path, manifest: Manifest, parts: Mapping[str, PartRecord]) -> None:
        """See `open`."""
        self.folder, self.manifest, self.parts = folder, manifest, dict(parts)
        self.subjects: tuple[SubjectEntry, ...] = ()
        self.rejected: tuple[Rejected, ...] = ()
        self._places: list[_Place] = []
        self._mapped: dict[tuple[str, int], Mapping[str, Tensor]] = {}

    @classmethod
    def open(cls, folder: Path | str, parts: Sequence[str] = PARTS) -> Corpus:
        """The corpus in a folder, as far as it is finished; see `check` for what a training needs of it.

        Args:
            folder: where it lies.
            parts: that are opened; whoever makes one anew leaves it out, as it may be damaged.

        Raises:
            FileFormatError: there is none, or a file of it is missing, damaged, newer, or of another corpus.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        records = {part: read_record(folder, part) for part in PARTS if part in parts}
        corpus = cls(folder, manifest, {part: record for part, record in records.items() if record is not None})
        for index in corpus.finished("pictures"):
            metadata, tensors = corpus._checked("pictures", index)
            table = unpack(shard_path(folder, "pictures", index), metadata)
            corpus._places += _places(folder, index, table.subjects, tensors)
            corpus.subjects += table.subjects
            corpus.rejected += table.rejected
        for part in [part for part in corpus.parts if part != "pictures"]:
            for index in corpus.finished(part):
                corpus._check_length(part, index, corpus._checked(part, index)[1])
        return corpus

    def __len__(self) -> int:
        """Subjects."""
        return len(self.subjects)

    def finished(self, part: str) -> list[int]:
        """Numbers of the shards of a part that are there."""
        record = self.parts.get(part)
        return [i for i in range(self.manifest.shards) if record is not None and record.entry(i) is not None]

    def is_whole(self, part: str) -> bool:
        """Whether all of a part is there."""
        return len(self.finished(part)) == self.manifest.shards

    def of_shard(self, index: int) -> list[int]:
        """Numbers of the subjects of a shard."""
        return [row for row, place in enumerate(self._places) if place.shard == index]

    @cached_property
    def reference_counts(self) -> Tensor:
        """References of each subject, (subjects,)."""
        return torch.tensor([len(one.references) for one in self.subjects], dtype=torch.long)

    @cached_property
    def picture_counts(self) -> Tensor:
        """Pictures of each subject, (subjects,)."""
        return torch.tensor([len(one.pictures) for one in self.subjects], dtype=torch.long)

    @cached_property
    def held_out(self) -> Tensor:
        """Numbers of the subjects that no training may see, rising, (h,)."""
        return self._split[0]

    @cached_property
    def training(self) -> Tensor:
        """Numbers of all others, rising, (n,)."""
        return self._split[1]

    @cached_property
    def _split(self) -> tuple[Tensor, Tensor]:
        out = torch.tensor([is_held_out(one.name, self.manifest.held_out) for one in self.subjects], dtype=torch.bool)
        return out.nonzero().flatten(), (~out).nonzero().flatten()

    def check(
        self,
        *parts: str,
        pictures: int = 1,
        family: str = "",
        fingerprint: str = "",
        encoder: str = "",
    ) -> None:
        """Refuse a corpus that lacks what a training needs, in one sentence that says how it is had.

        Args:
            parts: that must be whole, besides the pictures.
            pictures: that every subject needs.
            family, fingerprint: of the base, if it matters.
            encoder: digest of the image encoder, if it matters.

        Raises:
            ConfigError: a part is missing or unfinished, there is no subject, or one has too few pictures.
            BaseMismatchError: it was encoded by another base or encoder.
        """
        for part in dict.fromkeys(("pictures", *parts)):
            if not self.is_whole(part):
                there = f"{len(self.finished(part))} of {self.manifest.shards} shards of its {part} are there"
                raise ConfigError(f"{self.folder}: {there}; {_REMEDY[part]}")
        if not len(self):
            raise ConfigError(f"{self.folder}: holds no subject; `hyperdream corpus inspect` says what was rejected")
        if int(self.picture_counts.min()) < pictures:
            short = int((self.picture_counts < pictures).sum())
            name = self.subjects[int(self.picture_counts.argmin())].name
            raise ConfigError(
                f"{self.folder}: {short} of its {len(self):,} subjects have fewer than {pictures} pictures, the first "
                f"of them {name[:80]!r}; collect it with --least {pictures}, or ask for fewer pictures of each"
            )
        for part in parts:
            self._check_maker(part, {"family": family, "fingerprint": fingerprint, "encoder": encoder})

    def take(self, name: str, subjects: Tensor, rows: Tensor | None = None) -> Tensor:
        """Rows of one of the stacks, for subjects (b,) and rows (b,) among each one's own.

        Args:
            name: "references" or "pictures", (b, 3, size, size) in 0..1; "latents" (b, c, h, w); "tokens" (b, n, d) or
                "pooled" (b, d), of references; or a tensor of the identities, of which a subject has one.
            subjects: numbers of them.
            rows: of the reference or the picture; the first by default.

        Returns:
            float32, on the CPU.

        Raises:
            ConfigError: there is no such tensor, subject or row.
        """
        part = _STACKS.get(name, "identities")
        rows = torch.zeros_like(subjects) if rows is None else rows
        self._check_rows(name, part, subjects, rows)
        taken: Tensor | None = None
        shards = torch.tensor([self._places[i].shard for i in subjects.tolist()], dtype=torch.long)
        for shard in shards.unique().tolist():
            here = (shards == shard).nonzero().flatten()
            stack = self._tensors(part, shard).get(name)
            if stack is None:
                raise ConfigError(f"{self.folder}: its {part} have no {name!r}; known: {', '.join(self._names(part))}")
            places = [self._places[i] for i in subjects[here].tolist()]
            first = torch.tensor([_first(name, part, place) for place in places], dtype=torch.long)
            found = stack[first + rows[here]]
            found = found.float() / 255.0 if found.dtype == torch.uint8 else found.float()
            taken = found.new_empty(len(subjects), *found.shape[1:]) if taken is None else taken
            taken[here] = found
        if taken is None:
            raise ConfigError(f"{self.folder}: rows of no subject were asked for; name at least one")
        return taken

    def stack(self, name: str, shard: int) -> Tensor:
        """All rows of a shard, mapped and as they are stored; not to be written to.

        Raises:
            ConfigError: it is not there.
        """
        return self._tensors(_STACKS.get(name, "identities"), shard)[name]

    def features(self, subjects: Tensor, rows: Tensor | None = None) -> ImageFeatures:
        """What the image encoder saw in references: tokens (b, n, d) and pooled (b, d)."""
        return ImageFeatures(self.take("tokens", subjects, rows), self.take("pooled", subjects, rows))

    def captions(self, subjects: Tensor, rows: Tensor) -> list[str]:
        """What pictures show besides their subject; empty for nothing."""
        pairs = zip(subjects.tolist(), rows.tolist(), strict=True)
        return [self.subjects[subject].captions[row] for subject, row in pairs]

    def identities(self, subjects: Tensor) -> dict[str, LidbCoefficients]:
        """Layer -> coefficients (b, ...) of the subjects' identities."""
        layers = [name.removesuffix(".down") for name in self._names("identities") if name.endswith(".down")]
        return {
            layer: LidbCoefficients(self.take(f"{layer}.down", subjects), self.take(f"{layer}.up", subjects))
            for layer in layers
        }

    def verify(self, progress: Progress = no_progress) -> list[FileFormatError]:
        """Read every byte of every shard and compare it with its digest; what was found damaged."""
        entries = [(part, index) for part in self.parts for index in self.finished(part)]
        damaged = []
        for done, (part, index) in enumerate(entries):
            progress(done, len(entries))
            entry = self.parts[part].entry(index)
            assert entry is not None
            try:
                check_digest(shard_path(self.folder, part, index), part, entry)
            except FileFormatError as error:
                damaged.append(error)
        progress(len(entries), len(entries))
        return damaged

    def __getstate__(self) -> dict[str, object]:
        # Another process maps the files itself: mapped tensors would be sent to it number by number.
        return {**self.__dict__, "_mapped": {}}

    def _check_maker(self, part: str, wanted: Mapping[str, str]) -> None:
        facts = self.parts[part].facts
        names = {"family": "base family", "fingerprint": "base, fingerprint", "encoder": "image encoder, digest"}
        for key, value in wanted.items():
            if value and key in facts and facts[key] != value:
                raise BaseMismatchError(
                    f"{self.folder}: its {part} were made by another {names[key]} {str(facts[key])[:12]!r}, but "
                    f"{value[:12]!r} is at work. Use that one again, or remove {part}.json and {part}-*.safetensors "
                    "and encode it anew."
                )

    def _check_rows(self, name: str, part: str, subjects: Tensor, rows: Tensor) -> None:
        if part == "identities" and not name.endswith((".down", ".up")):
            raise ConfigError(f"a corpus has no {name!r}; known: {', '.join(_STACKS)}, LAYER.down and LAYER.up")
        if part not in self.parts:
            raise ConfigError(f"{self.folder}: has no {part}; {_REMEDY[part]}")
        if subjects.shape != rows.shape or subjects.dim() != 1:
            raise ConfigError(
                f"subjects {tuple(subjects.shape)} and rows {tuple(rows.shape)} must be two lists of one length"
            )
        if bool(((subjects < 0) | (subjects >= len(self))).any()):
            raise ConfigError(f"{self.folder}: holds subjects 0..{len(self) - 1}, got {subjects.tolist()[:8]}")
        counts = self.reference_counts if name in _OF_REFERENCES else self.picture_counts
        most = counts[subjects] if part != "identities" else torch.ones_like(rows)
        if bool(((rows < 0) | (rows >= most)).any()):
            at = int(((rows < 0) | (rows >= most)).nonzero()[0])
            raise ConfigError(
                f"{self.folder}: subject {int(subjects[at])} has {int(most[at])} rows of {name!r}, counted from 0, got "
                f"{int(rows[at])}"
            )

    def _check_length(self, part: str, index: int, tensors: Mapping[str, Tensor]) -> None:
        """See that a shard has a row for everything that it was made of."""
        pictures = self._mapped.get(("pictures", index), {})
        subjects = len(self.of_shard(index)) if part == "identities" else 0
        for name, stack in tensors.items():
            of = "references" if name in _OF_REFERENCES else "pictures"
            expected = subjects if part == "identities" else len(pictures[of]) if of in pictures else -1
            if stack.dim() < 2 or len(stack) != expected:
                raise FileFormatError(
                    shard_path(self.folder, part, index),
                    f"has {quoted(name)} of shape {tuple(stack.shape)}, but {expected} rows are expected. Remove it, "
                    "and make it again.",
                )

    def _names(self, part: str) -> list[str]:
        """Of the tensors of a part."""
        return sorted(self._tensors(part, self.finished(part)[0])) if self.finished(part) else []

    def _tensors(self, part: str, index: int) -> Mapping[str, Tensor]:
        if (part, index) not in self._mapped:
            if index not in self.finished(part):
                raise ConfigError(f"{self.folder}: shard {index} of its {part} is not there; {_REMEDY[part]}")
            self._checked(part, index)
        return self._mapped[part, index]

    def _checked(self, part: str, index: int) -> tuple[dict[str, str], Mapping[str, Tensor]]:
        """Map a shard, and keep it."""
        record, pictures = self.parts[part], self.parts["pictures"].entry(index)
        of = pictures.sha256 if part != "pictures" and pictures is not None else ""
        path = shard_path(self.folder, part, index)
        metadata, tensors = check_shard(path, part, record.facts, index, of, record.entry(index))
        self._mapped[part, index] = tensors
        return metadata, tensors


def _first(name: str, part: str, place: _Place) -> int:
    """The row of a stack with which a subject's own begin."""
    if part == "identities":
        return place.row
    return place.reference if name in _OF_REFERENCES else place.picture


def _places(folder: Path, index: int, subjects: Sequence[SubjectEntry], tensors: Mapping[str, Tensor]) -> list[_Place]:
    places, reference, picture = [], 0, 0
    for row, subject in enumerate(subjects):
        places.append(_Place(index, row, reference, picture))
        reference, picture = reference + len(subject.references), picture + len(subject.pictures)
    found = [len(tensors[name]) if name in tensors else -1 for name in ("references", "pictures")]
    if found != [reference, picture]:
        raise FileFormatError(
            shard_path(folder, "pictures", index),
            f"holds {found[0]} references and {found[1]} pictures, but its table tells of {reference} and {picture}. "
            "Remove it, and collect it again.",
        )
    return places
