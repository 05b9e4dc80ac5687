"""Collecting: the subjects of a source become the first part of a corpus, its references and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ...config import changed_setting, config_to_json
from ...errors import ConfigError, ReferenceImageError
from ...whole_file import make_folder
from ..before_work import check_folder
from ..progress import Progress, no_progress
from .corpus import Corpus
from .manifest import MANIFEST, Manifest, read_manifest, write_manifest
from .shards import Contents, Part, Say, make_part
from .subjects import Group, pack


class Source(Protocol):
    """Where subjects come from, in groups of one shard each."""

    def lengths(self) -> list[int]:
        """How much each group is to do, for progress."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """What a reader of the manifest should know."""
        ...

    def plan(self) -> str:
        """Digest of everything that decides what comes of it."""
        ...

    def group(self, index: int, size: int, said: Callable[[], None]) -> Group:
        """The subjects of one shard; `said` is called after every piece of what is to do."""
        ...


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """Settings of a corpus."""

    size: int = 512
    """Side of its pictures, px: that of the base, or larger."""
    class_noun: str = "face"
    """What its subjects are, in prompts."""
    held_out: float = 0.05
    """Share of the subjects that no training sees, 0..1; a hash of the name decides."""
    licence: str = ""
    """By what right the pictures are used: a licence, or whose consent; it is kept in the corpus."""


def collect(
    source: Source,
    folder: Path,
    config: CollectConfig,
    progress: Progress = no_progress,
    say: Say = lambda text: None,
) -> Corpus:
    """Make a corpus of a source, or go on with one; what is there already stays as it is.

    Args:
        source: of subjects.
        folder: of the corpus; made if need be.
        config: settings.
        progress: of the source's pieces.
        say: told of what is made anew.

    Raises:
        ConfigError: another corpus lies there, or was begun with other settings or pictures.
        ReferenceImageError: no picture of the source can be used.
        OutputError: the folder cannot be written, or the disk is full.
    """
    lengths = source.lengths()
    manifest = Manifest(**config_to_json(config), sources=(source.facts(),), plan=source.plan(), shards=len(lengths))
    check_folder(folder)
    _begin(folder, manifest)
    done, total = 0, sum(lengths)

    def said() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    def make(index: int) -> Contents:
        nonlocal done
        done = sum(lengths[:index])
        progress(done, total)
        metadata, tensors = pack(source.group(index, manifest.size, said), manifest.size)
        return Contents(tensors=tensors, metadata=metadata, numbers=tuple(tensors))

    part = Part(folder=folder, name="pictures", facts={"plan": manifest.plan}, made_of=[""] * manifest.shards)
    make_part(part, make, say)
    progress(total, total)
    corpus = Corpus.open(folder, ("pictures",))
    if not len(corpus):
        first = f"; {corpus.rejected[0].what}: {corpus.rejected[0].why}" if corpus.rejected else ""
        raise ReferenceImageError(f"none of the {total:,} pictures can be used{first}; see what they show")
    return corpus


def _begin(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, or see that the one there says the same."""
    if not (folder / MANIFEST).exists():
        make_folder(folder)
        write_manifest(folder, manifest)
        return
    there, wanted = (config_to_json(one) for one in (read_manifest(folder), manifest))
    # Words for people decide nothing.
    there["licence"] = wanted["licence"]
    plans = [one.pop("plan") for one in (there, wanted)]
    for one in (there, wanted):
        one.pop("shards")
        one["sources"] = {str(number): source for number, source in enumerate(one["sources"])}
    changed = changed_setting(there, wanted)
    if not changed and plans[0] != plans[1]:
        changed = "other files, or files of other sizes"
    if changed:
        raise ConfigError(
            f"{folder}: holds a corpus that was begun with {changed}. Ask for the same again, name another folder, or "
            "remove this one."
        )
