"""A folder of photographs as a source of subjects: a subfolder for each person, or one photograph of each.

Of several photographs of a person each one is reference and picture. Of a single one the references are other views.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ...config import config_to_json
from ...errors import ConfigError, HyperDreamError, ReferenceImageError
from ...faces.face import FaceDetector
from ...faces.prepare import PrepareConfig, PreparedPicture, prepare_picture
from ...pictures.files import read_picture
from ...regular_file import read_bounded
from ..before_work import check_texts
from .manifest import digest_of
from .subjects import Group, Rejected, Subject, SubjectEntry
from .views import other_views

PICTURES = {
    ".jpg", ".jpeg", ".png", ".webp", ".avif", ".gif", ".tif", ".tiff", ".bmp", ".ppm", ".tga", ".jp2", ".heic",
}  # fmt: skip
"""Endings of the files that are taken for photographs; all others are passed over."""
_LONGEST_CAPTION = 20_000
"""bytes"""

Describe = Callable[[Tensor], Sequence[str]]
"""Reads off crops (n, 3, size, size) what they show besides their subject."""


@dataclass(frozen=True, kw_only=True)
class PhotographsConfig:
    """Settings of collecting photographs."""

    least: int = 1
    """Usable photographs that a person needs; people with fewer are left out."""
    most: int = 20
    """Photographs of a person that are taken, by their names' order."""
    views: int = 4
    """References made of a single photograph: other crops, turns and light."""
    stacked: int = 256
    """Pictures and references in one shard, about; a killed run loses one shard at most."""

    def __post_init__(self) -> None:
        for name, most in (("least", 1000), ("most", 1000), ("views", 100), ("stacked", 100_000)):
            if not 1 <= getattr(self, name) <= most:
                raise ConfigError(f"{name} must lie in 1..{most:,}, got {getattr(self, name):,}")
        if self.least > self.most:
            raise ConfigError(f"least must be most or fewer, got {self.least} and {self.most}")


@dataclass(frozen=True, kw_only=True)
class Person:
    """One person's photographs."""

    name: str
    files: tuple[Path, ...]
    left_out: tuple[Rejected, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Photographs:
    """The photographs of a folder; a `collect.Source`."""

    folder: Path
    config: PhotographsConfig
    prepare: PrepareConfig
    detector: FaceDetector
    describe: Describe | None = None
    """says what a photograph shows that has no .txt beside it; None says nothing"""
    described_by: str = ""
    """who that is"""
    groups: tuple[tuple[Person, ...], ...] = field(init=False)
    """the people of each shard"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(_grouped(people_in(self.folder, self.config.most), self.config)))

    def __len__(self) -> int:
        """Photographs."""
        return sum(self.lengths())

    def lengths(self) -> list[int]:
        """Photographs of each shard."""
        return [sum(len(person.files) for person in group) for group in self.groups]

    def facts(self) -> dict[str, object]:
        """What a reader of the manifest should know."""
        return {"kind": "photographs", "folder": self.folder.resolve().name, "photographs": len(self),
                "people": sum(map(len, self.groups)), "detector": self.detector.about,
                "described_by": self.described_by, **config_to_json(self.config)}  # fmt: skip

    def plan(self) -> str:
        """Digest of everything that decides what comes of it, but for the photographs' own bytes."""
        settings = config_to_json(self.prepare)
        settings.pop("face_models")
        people = [
            [person.name, [[file.name, file.stat().st_size, _caption_size(file)] for file in person.files]]
            for group in self.groups
            for person in group
        ]
        return digest_of([self.facts(), settings, people])

    def group(self, index: int, size: int, said: Callable[[], None]) -> Group:
        """The subjects of a shard, their pictures `size` px wide; `said` is called after every photograph."""
        subjects: list[Subject] = []
        rejected: list[Rejected] = []
        for person in self.groups[index]:
            rejected += person.left_out
            taken: list[tuple[int, PreparedPicture, str]] = []
            for number, file in enumerate(person.files):
                try:
                    taken.append((number, self._prepared(file, size), _caption(file)))
                except HyperDreamError as error:
                    rejected.append(Rejected(what=self._called(file), why=str(error)))
                said()
            if len(taken) < self.config.least:
                if person.files:
                    why = f"{len(taken)} of {len(person.files)} photographs can be used, {self.config.least} are needed"
                    rejected.append(Rejected(what=person.name, why=why))
                continue
            subjects.append(self._subject(person.name, taken, size))
        return Group(subjects=subjects, rejected=rejected)

    def _prepared(self, file: Path, size: int) -> PreparedPicture:
        picture = read_picture(file, self.prepare.background)
        one = prepare_picture(picture, self._called(file), size, self.prepare, self.detector)
        if one.crop is None:
            raise ReferenceImageError(one.notes[-1].removesuffix("; skipped"))
        return one

    def _subject(self, name: str, taken: list[tuple[int, PreparedPicture, str]], size: int) -> Subject:
        crops = torch.stack([one.crop for _, one, _ in taken if one.crop is not None])
        captions = [caption for _, _, caption in taken]
        unsaid = [row for row, caption in enumerate(captions) if not caption]
        if unsaid and self.describe is not None:
            for row, text in zip(unsaid, self.describe(crops[unsaid]), strict=True):
                captions[row] = text
        numbers = tuple(number for number, _, _ in taken)
        references, of = crops, numbers
        if len(taken) == 1:
            seed = int.from_bytes(hashlib.sha256(name.encode("utf-8", "backslashreplace")).digest()[:5], "big")
            generator = torch.Generator().manual_seed(seed)
            references = other_views(taken[0][1], size, self.config.views, self.prepare.margin, generator)
            of = numbers * self.config.views
        entry = SubjectEntry(name=name, references=of, pictures=numbers, captions=tuple(captions))
        return Subject(entry=entry, references=as_bytes(references), pictures=as_bytes(crops))

    def _called(self, file: Path) -> str:
        return file.relative_to(self.folder).as_posix()


def as_bytes(pictures: Tensor) -> Tensor:
    """Pictures in 0..1 as uint8, rounded to nearest."""
    return (pictures.clamp(0, 1) * 255.0).round().to(torch.uint8)


def people_in(folder: Path, most: int) -> list[Person]:
    """The people of a folder, by name: subfolders, and photographs that lie in the folder itself.

    Raises:
        ReferenceImageError: there is no such folder, or no photograph in it.
        ConfigError: two people have one name.
    """
    if not folder.is_dir():
        raise ReferenceImageError(f"{folder}: is no folder, but one with photographs of people is expected")
    people: dict[str, Person] = {}
    for path in sorted(folder.iterdir(), key=lambda one: one.name):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            person = _of_folder(path, folder, most)
        elif path.suffix.lower() in PICTURES:
            person = Person(name=path.stem, files=(path,))
        else:
            continue
        if person.name in people:
            raise ConfigError(
                f"{folder}: names two people {person.name[:80]!r}; rename one, or put the photographs of one person in "
                "one subfolder"
            )
        people[person.name] = person
    if not any(person.files for person in people.values()):
        raise ReferenceImageError(
            f"{folder}: holds no photograph, neither in itself nor in its subfolders; put a subfolder for each person "
            f"there, or one photograph of each ({', '.join(sorted(PICTURES))})"
        )
    return list(people.values())


def _of_folder(path: Path, folder: Path, most: int) -> Person:
    inside = sorted((one for one in path.iterdir() if not one.name.startswith(".")), key=lambda one: one.name)
    files = [one for one in inside if not one.is_dir() and one.suffix.lower() in PICTURES]
    left_out = [(one, f"is beyond the first {most} of a person; raise most") for one in files[most:]]
    left_out += [(one, "lies deeper than a person's folder, where nobody looks") for one in inside if one.is_dir()]
    if not files:
        left_out.append((path, "holds no photograph"))
    rejected = tuple(Rejected(what=one.relative_to(folder).as_posix(), why=why) for one, why in left_out)
    return Person(name=path.name, files=tuple(files[:most]), left_out=rejected)


def _grouped(people: Sequence[Person], config: PhotographsConfig) -> Iterator[tuple[Person, ...]]:
    """People in shards of about `stacked` pictures and references; nobody is divided."""
    group: list[Person] = []
    rows = 0
    for person in people:
        own = 1 + config.views if len(person.files) == 1 else 2 * len(person.files)
        if group and rows + own > config.stacked:
            yield tuple(group)
            group, rows = [], 0
        group.append(person)
        rows += own
    yield tuple(group)


def _caption(file: Path) -> str:
    """What the .txt beside a photograph says it shows, on one line; empty if there is none."""
    place = file.with_suffix(".txt")
    if not place.is_file():
        return ""
    try:
        text = " ".join(read_bounded(place, _LONGEST_CAPTION).decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise ReferenceImageError(f"{place.name}: is no UTF-8 ({error.reason}), but a caption is expected") from error
    check_texts(caption=text)
    return text


def _caption_size(file: Path) -> int:
    place = file.with_suffix(".txt")
    return place.stat().st_size if place.is_file() else -1
