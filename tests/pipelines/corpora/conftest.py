from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hyperdream_core.faces.detectors import open_detector
from hyperdream_core.faces.prepare import PrepareConfig
from hyperdream_core.pipelines.corpora.collect import CollectConfig, collect
from hyperdream_core.pipelines.corpora.corpus import Corpus
from hyperdream_core.pipelines.corpora.photographs import Describe, Photographs, PhotographsConfig

SMALL = CollectConfig(size=64, held_out=0.3)


def photograph(path: Path, seed: int) -> None:
    """48x40 px of noise, another for every seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 255, (48, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def source_of(folder: Path, describe: Describe | None = None, **settings: int) -> Photographs:
    """Photographs that are crops already, so that no detector looks at noise."""
    prepare = replace(PrepareConfig(), detector="already-cropped", on_no_face="skip")
    config = PhotographsConfig(**{"stacked": 9, **settings})
    return Photographs(
        folder=folder, config=config, prepare=prepare, detector=open_detector("already-cropped")[0], describe=describe
    )


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Three people with 2, 3 and 1 photographs in subfolders, and two with one each in the folder itself."""
    folder = tmp_path / "people"
    for person, count in (("anna", 2), ("bela", 3), ("cleo", 1)):
        for number in range(count):
            photograph(folder / person / f"{number}.png", hash_of(f"{person}{number}"))
    for person in ("dora", "emil"):
        photograph(folder / f"{person}.png", hash_of(person))
    (folder / "anna" / "1.txt").write_text("smiling,\n at the beach\n")
    return folder


@pytest.fixture
def corpus(people: Path, tmp_path: Path) -> Corpus:
    return collect(source_of(people), tmp_path / "corpus", SMALL)


@pytest.fixture(scope="session")
def bytes_of() -> Callable[[Path], dict[str, str]]:
    """Digest of each file in a folder."""
    return lambda folder: {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())
    }


def hash_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
