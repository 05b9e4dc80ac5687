"""Subjects with noise for pictures: a corpus in memory, and a source of one on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from hyperdream_core.models.image_encoder import ImageFeatures
from hyperdream_core.ops.lidb import LidbCoefficients
from hyperdream_core.pipelines.corpora.subjects import Group, Subject, SubjectEntry


def noise(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(eq=False)
class InMemory:
    """Seven subjects, of whom the last three are held out; subject k has k % 3 + 1 pictures and as many references."""

    latent_shape: tuple[int, int, int]
    size: int = 32
    training: Tensor = field(default_factory=lambda: torch.arange(4))
    held_out: Tensor = field(default_factory=lambda: torch.arange(4, 7))

    def __post_init__(self) -> None:
        counts = [k % 3 + 1 for k in range(7)]
        self.reference_counts = self.picture_counts = torch.tensor(counts)
        self.subjects = [
            SimpleNamespace(name=f"person {k}", references=tuple(range(count)), pictures=tuple(range(count)))
            for k, count in enumerate(counts)
        ]

    def take(self, name: str, subjects: Tensor, rows: Tensor | None = None) -> Tensor:
        shape = self.latent_shape if name == "latents" else (3, self.size, self.size)
        rows = torch.zeros_like(subjects) if rows is None else rows
        return torch.stack([
            noise(*shape, seed=100 * s + 10 * r + (name == "latents"))
            for s, r in zip(subjects.tolist(), rows.tolist(), strict=True)
        ])  # fmt: skip

    def features(self, subjects: Tensor, rows: Tensor | None = None) -> ImageFeatures:
        rows = torch.zeros_like(subjects) if rows is None else rows
        tokens = torch.stack([
            noise(4, 6, seed=100 * s + 10 * r + 2) for s, r in zip(subjects.tolist(), rows.tolist(), strict=True)
        ])  # fmt: skip
        return ImageFeatures(tokens, tokens.mean(1))

    def captions(self, subjects: Tensor, rows: Tensor) -> list[str]:
        return [f"picture {r} of {s}" for s, r in zip(subjects.tolist(), rows.tolist(), strict=True)]

    def identities(self, subjects: Tensor) -> dict[str, LidbCoefficients]:
        return {
            "layer": LidbCoefficients(subjects[:, None, None].float().expand(-1, 1, 5), torch.ones(len(subjects), 7, 1))
        }


class Noise:
    """Six people with two pictures of noise each, in two shards."""

    def lengths(self) -> list[int]:
        return [3, 3]

    def facts(self) -> dict[str, Any]:
        return {"kind": "noise"}

    def plan(self) -> str:
        return "0" * 64

    def group(self, index: int, size: int, said: Callable[[], None]) -> Group:
        subjects = []
        for number in range(3 * index, 3 * index + 3):
            pictures = torch.randint(0, 255, (2, 3, size, size), generator=torch.Generator().manual_seed(number))
            entry = SubjectEntry(name=f"p{number}", references=(0, 1), pictures=(0, 1), captions=("", "smiling"))
            subjects.append(Subject(entry=entry, references=pictures.byte(), pictures=pictures.byte()))
        return Group(subjects=subjects)
