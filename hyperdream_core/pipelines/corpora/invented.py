"""People that the base itself makes up, as a source of subjects: an identity drawn from a prior *is* a person.

The base draws the person in several contexts. So nobody's photograph is needed, and the weights that a predictor should
answer with are known exactly: `keep_identities` stores them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...bases import get_base
from ...config import config_to_json
from ...errors import ConfigError
from ...faces.face import FaceDetector
from ...faces.likeness import Likeness
from ...faces.prepared_faces import faces_of_crops
from ...faces.recognizer import Recognizer
from ...identity import Identity, coefficient_shapes
from ...ops.lidb import BASIS_RECIPE
from ..base import Base
from ..drawing.draw import DrawConfig, draw
from .corpus import Corpus
from .manifest import digest_of
from .photographs import as_bytes
from .prior import Prior, somebody
from .shards import Contents, Part, Say, make_part
from .subjects import Group, Rejected, Subject, SubjectEntry

PLAIN = ("calm, in a studio, photo", "smiling, in a studio, photo", "calm, in the mountains, photo",
         "smiling, at the beach, photo", "surprised, in a forest, photo")  # fmt: skip
"""Contexts of references."""
CONTEXTS = tuple(
    f"{expression}, {worn}{place}, {style}"
    for expression, place, style in (
        ("smiling", "at the beach", "photo"), ("calm", "in a forest", "watercolour"), ("sad", "in a studio", "photo"),
        ("surprised", "in the city at night", "photo"), ("calm", "in the mountains", "comic"),
        ("smiling", "at sunset", "sepia"), ("sad", "in a forest", "photo"), ("surprised", "in a studio", "watercolour"),
    )
    for worn in ("", "wearing glasses, ", "wearing a hat, ")
)  # fmt: skip
"""Contexts of pictures, where none are given; the miniature knows all of these words."""
_NOISES = 10_000
"""seeds of noise that a person has"""


@dataclass(frozen=True, kw_only=True)
class InventConfig:
    """Settings of inventing people."""

    people: int = 1000
    """People to invent."""
    pictures: int = 4
    """Pictures drawn of each, every one in another context."""
    references: int = 1
    """References drawn of each, in plain contexts."""
    least: int = 2
    """Pictures of a person that must be alike; people with fewer are left out."""
    likeness: float = 0.0
    """Cosine to the references that a picture needs; 0 takes the recogniser's own bound for one person."""
    seed: int = 0
    """Decides who they are."""
    together: int = 32
    """People in one shard; a killed run loses one shard at most."""

    def __post_init__(self) -> None:
        bounds = {"people": 10_000_000, "pictures": 100, "references": 100, "least": 100, "together": 10_000}
        for name, most in bounds.items():
            if not 1 <= getattr(self, name) <= most:
                raise ConfigError(f"{name} must lie in 1..{most:,}, got {getattr(self, name):,}")
        if self.least > self.pictures:
            raise ConfigError(f"least must be pictures or fewer, got {self.least} and {self.pictures}")
        if not 0 <= self.likeness <= 1:
            raise ConfigError(f"likeness must lie in 0..1, got {self.likeness:g}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Invented:
    """People of a prior, drawn by a base; a `collect.Source`."""

    base: Base
    fingerprint: str
    """of the base"""
    prior: Prior
    config: InventConfig
    drawing: DrawConfig
    contexts: Sequence[str] = CONTEXTS
    recognizer: Recognizer | None = None
    """leaves out pictures that show somebody else; None keeps all"""
    detector: FaceDetector | None = None
    """finds the faces that the recogniser measures, if it needs to be shown them"""

    def lengths(self) -> list[int]:
        """People of each shard."""
        each, all_ = self.config.together, self.config.people
        return [min(each, all_ - start) for start in range(0, all_, each)]

    def facts(self) -> Mapping[str, Any]:
        """What a reader of the manifest should know."""
        return {"kind": "invented", "prior": self.prior.about, "base": self.base.family.name,
                "fingerprint": self.fingerprint, "contexts": len(self.contexts), "steps": self.drawing.steps,
                "recognizer": self.recognizer.about if self.recognizer is not None else "",
                **config_to_json(self.config)}  # fmt: skip

    def plan(self) -> str:
        """Digest of everything that decides what comes of it."""
        return digest_of([dict(self.facts()), self.prior.digest(), config_to_json(self.drawing), list(self.contexts)])

    def group(self, index: int, size: int, said: Callable[[], None]) -> Group:
        """The people of a shard, drawn at `size` px; `said` is called after each."""
        subjects: list[Subject] = []
        rejected: list[Rejected] = []
        first = index * self.config.together
        for number in range(first, first + self.lengths()[index]):
            subject, left_out = self._drawn(number, size)
            subjects += [subject] if subject is not None else []
            rejected += left_out
            said()
        return Group(subjects=subjects, rejected=rejected)

    def person(self, name: str) -> Identity:
        """The true identity of a subject of that name."""
        return somebody(self.prior, self.config.seed, int(name.rpartition("-")[2]))

    def _drawn(self, number: int, size: int) -> tuple[Subject | None, list[Rejected]]:
        config, name = self.config, f"invented-{self.config.seed}-{number:07d}"
        identity = self.person(name)
        generator = torch.Generator().manual_seed(number)
        captions = _chosen(PLAIN, config.references, generator) + _chosen(self.contexts, config.pictures, generator)
        prompts = [f"a {identity.identifier} {identity.class_noun}, {caption}" for caption in captions]
        seeds = [(config.seed * 7919 + number) * _NOISES + row for row in range(len(prompts))]
        drawn = draw(self.base, prompts, identity, replace(self.drawing, size=size), seeds=seeds).cpu()
        references, pictures = drawn[: config.references], drawn[config.references :]
        kept, rejected = self._alike(name, references, pictures)
        if len(kept) < config.least:
            why = f"{len(kept)} of {config.pictures} pictures are alike, {config.least} are needed"
            return None, [*rejected, Rejected(what=name, why=why)]
        entry = SubjectEntry(
            name=name,
            references=tuple(range(config.references)),
            pictures=tuple(config.references + row for row in kept),
            captions=tuple(captions[config.references + row] for row in kept),
        )
        return Subject(entry=entry, references=as_bytes(references), pictures=as_bytes(pictures[kept])), rejected

    def _alike(self, name: str, references: torch.Tensor, pictures: torch.Tensor) -> tuple[list[int], list[Rejected]]:
        """Rows of the pictures that show the references' person."""
        if self.recognizer is None:
            return list(range(len(pictures))), []
        bound = self.config.likeness or self.recognizer.same_person
        likeness = Likeness(faces_of_crops(references), self.recognizer, self.detector)(pictures).tolist()
        # NaN, where no face is seen, is not alike either.
        kept = [row for row, value in enumerate(likeness) if value >= bound]
        rejected = [
            Rejected(what=f"{name}, picture {row + 1}", why=f"likeness {value:.2f}, {bound:.2f} is needed")
            for row, value in enumerate(likeness)
            if row not in kept
        ]
        return kept, rejected


def keep_identities(corpus: Corpus, source: Invented, say: Say = lambda text: None) -> None:
    """Store the true identities of a corpus of invented people, as its part of that name.

    Raises:
        ConfigError, OutputError: as `shards.make_part`.
    """
    one = somebody(source.prior, source.config.seed, 0)
    family = get_base(one.family)
    facts = {
        "family": one.family, "fingerprint": source.fingerprint, "target_set": one.target_set, "rank": one.rank,
        "down_dim": one.down_dim, "up_dim": one.up_dim, "layers": family.layers_digest(one.target_set),
        "basis": BASIS_RECIPE, "how": "drawn", "prior": source.prior.digest(),
    }  # fmt: skip

    def make(index: int) -> Contents:
        people = [source.person(corpus.subjects[row].name) for row in corpus.of_shard(index)]
        tensors = {}
        for layer in family.layers(one.target_set):
            shapes = coefficient_shapes(layer, one.rank, one.down_dim, one.up_dim)
            for side, shape in zip(("down", "up"), shapes, strict=True):
                rows = [getattr(person.coefficients[layer.name], side) for person in people]
                tensors[f"{layer.name}.{side}"] = torch.stack(rows) if rows else torch.empty(0, *shape)
        return Contents(tensors=tensors)

    record = corpus.parts["pictures"]
    made_of = [record.shards[str(index)].sha256 for index in range(corpus.manifest.shards)]
    make_part(Part(folder=corpus.folder, name="identities", facts=facts, made_of=made_of), make, say)


def _chosen(texts: Sequence[str], count: int, generator: torch.Generator) -> list[str]:
    """That many texts at random, each once before any is there twice."""
    order: list[int] = []
    while len(order) < count:
        order += torch.randperm(len(texts), generator=generator).tolist()
    return [texts[row] for row in order[:count]]
