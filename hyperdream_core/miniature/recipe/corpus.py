"""The pictures a miniature is trained on: many subjects, each in several contexts, kept as bytes on disk.

Which people exist is decided by a seed (`world.people.SEEDS`), so that no two parts of the recipe share one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...bases.miniature import MINIATURE
from ...errors import ConfigError
from ...whole_file import reserve
from ..world.captions import Context, random_context, reference_context
from ..world.people import People, random_people
from ..world.pets import Pets, random_pets, render_pets
from ..world.portrait import render_people
from ..world.view import View, random_view
from .results import Result, Say, no_say

CHUNK = 32
"""Pictures rendered at a time; more does not fit the cache."""
_ROUNDING = 3
"""Levels of 255 by which a picture may differ on another machine."""


@dataclass(frozen=True)
class Corpus:
    """Pictures of one kind of subject and what is in them."""

    pictures: np.ndarray  # (subjects, contexts, 3, size, size) uint8, memory-mapped
    subjects: People | Pets
    context: Context  # (subjects * contexts,) indices

    @property
    def contexts(self) -> int:
        """Pictures of each subject."""
        return int(self.pictures.shape[1])

    def take(self, subject: Tensor, context: Tensor) -> Tensor:
        """Pictures (b, 3, size, size), 0..1, of subjects (b,) in their contexts (b,)."""
        chosen = self.pictures[subject.numpy(), context.numpy()]
        return torch.from_numpy(chosen).float() / 255.0


def build_corpus(
    path: Path,
    noun: str,
    subjects: int,
    contexts: int,
    seed: int,
    *,
    references: bool = False,
    size: int = MINIATURE.picture_size,
    progress: Any = None,
    say: Say = no_say,
) -> Corpus:
    """Render a corpus into `path` (.npy), or open the one that is there.

    Args:
        path: file of the pictures; written whole, so that a half-finished one is rendered anew.
        noun: "face" or "pet".
        subjects, contexts: how many, and pictures of each.
        seed: decides the subjects, the contexts and the views.
        references: draw plain reference photographs instead of any context.
        size: px.
        progress: called with (done, total) pictures.
        say: told if what is there is damaged, and rendered anew.

    Raises:
        ConfigError: what is there shows other subjects, contexts or views.
        OutputError: it cannot be written.
    """
    generator = torch.Generator().manual_seed(seed)
    people = random_people(subjects, generator) if noun == "face" else random_pets(subjects, generator)
    total = subjects * contexts
    generator.manual_seed(seed * 7919 + (13 if references else 0))
    context = (reference_context if references else random_context)(total, generator)
    view = random_view(total, generator)
    settings = {"noun": noun, "subjects": subjects, "contexts": contexts, "seed": seed, "references": references,
                "size": size}  # fmt: skip
    shape = (subjects, contexts, 3, size, size)
    result = Result(path, settings, shape=shape, say=say)
    if not result.is_there():
        with result.made() as part:
            _render_all(part, shape, people, context, view, progress)
    pictures = np.load(path, mmap_mode="r")
    _check_first(path, pictures, people, context, view)
    return Corpus(pictures, people, context)


def _check_first(path: Path, pictures: np.ndarray, subjects: People | Pets, context: Context, view: View) -> None:
    """See that the first picture is what would be drawn today: another release may have drawn another world."""
    contexts, size = pictures.shape[1], pictures.shape[-1]
    today = _render(subjects, context, view, torch.tensor([0]), contexts, size)[0] * 255.0
    if float((today - torch.from_numpy(pictures[0, 0].astype(np.float32))).abs().max()) > _ROUNDING + 0.5:
        raise ConfigError(
            f"{path}: shows other pictures than this release draws for the same seed. Name another --work folder, or "
            "remove it and what was made from it."
        )


def _render_all(
    path: Path, shape: tuple[int, ...], subjects: People | Pets, context: Context, view: View, progress: Any
) -> None:
    contexts, total, size = shape[1], shape[0] * shape[1], shape[-1]
    pictures = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    reserve(path, path.stat().st_size)
    flat = pictures.reshape(total, *shape[2:])
    for start in range(0, total, CHUNK):
        rows = torch.arange(start, min(start + CHUNK, total))
        rendered = _render(subjects, context, view, rows, contexts, size)
        flat[start : start + CHUNK] = (rendered * 255.0 + 0.5).byte().numpy()
        if progress is not None:
            progress(start, total)
    pictures.flush()


def _render(subjects: People | Pets, context: Context, view: View, rows: Tensor, contexts: int, size: int) -> Tensor:
    chosen_view = type(view)(**{name: value[rows] for name, value in vars(view).items()})
    if isinstance(subjects, People):
        return render_people(subjects[rows // contexts], context[rows], chosen_view, size)
    return render_pets(subjects[rows // contexts], context[rows], chosen_view, size)
