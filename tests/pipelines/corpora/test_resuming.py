"""Corpora that are killed, run into a full disk or meet another base: what was done stays."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from hyperdream_core import whole_file
from hyperdream_core.errors import ConfigError, OutputError
from hyperdream_core.formats.container import read_names
from hyperdream_core.pipelines.corpora.collect import CollectConfig, collect
from hyperdream_core.pipelines.corpora.corpus import Corpus
from hyperdream_core.pipelines.corpora.encode import encode_latents
from hyperdream_core.pipelines.corpora.photographs import Photographs
from hyperdream_core.pipelines.diffusers.diffusers_base import DiffusersBase
from tests.kills import full_disk
from tests.pipelines.corpora.conftest import SMALL, photograph, source_of

Digests = Callable[[Path], dict[str, str]]


class Killed(BaseException):
    """As nothing that is caught anywhere."""


def killed(monkeypatch: pytest.MonkeyPatch, at: int, before: bool, job: Callable[[], object]) -> bool:
    """Run a job that dies around its `at`-th rename of a finished file; whether it came that far."""
    renamed, replace = 0, whole_file.os.replace

    def dying(part: Path, path: Path) -> None:
        nonlocal renamed
        renamed += 1
        if renamed == at + 1 and before:
            raise Killed
        replace(part, path)
        if renamed == at + 1:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(whole_file.os, "replace", dying)
        try:
            job()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_killed_around_every_file_it_goes_on_to_the_same_bytes(
    people: Path, tmp_path: Path, base: DiffusersBase, monkeypatch: pytest.MonkeyPatch, bytes_of: Digests, before: bool
) -> None:
    def job(folder: Path) -> None:
        encode_latents(collect(source_of(people, stacked=16), folder, SMALL), base)

    job(tmp_path / "undisturbed")
    expected = bytes_of(tmp_path / "undisturbed")
    at, kills = 0, 0
    while killed(monkeypatch, at, before, partial(job, tmp_path / f"killed-{at}")):
        kills += 1
        job(tmp_path / f"killed-{at}")
        assert bytes_of(tmp_path / f"killed-{at}") == expected
        at += 1
    # The manifest, and for each part its record, and for each shard itself and the record again.
    assert kills == 1 + 2 * (1 + 2 * Corpus.open(tmp_path / "undisturbed").manifest.shards)


def test_a_finished_shard_is_not_made_again_though_nobody_recorded_it(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The fourth file is the second shard: manifest, record, shard, record, shard.
    assert killed(monkeypatch, 4, False, lambda: collect(source_of(people), tmp_path / "corpus", SMALL))
    made: list[int] = []
    group = Photographs.group
    monkeypatch.setattr(
        Photographs, "group", lambda self, index, *rest: (made.append(index), group(self, index, *rest))[1]
    )
    corpus = collect(source_of(people), tmp_path / "corpus", SMALL)
    assert made == list(range(2, corpus.manifest.shards)) and corpus.is_whole("pictures")


def test_an_unfinished_corpus_opens_and_says_what_is_missing(
    people: Path, tmp_path: Path, base: DiffusersBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert killed(monkeypatch, 3, False, lambda: collect(source_of(people), tmp_path / "corpus", SMALL))
    corpus = Corpus.open(tmp_path / "corpus")
    assert corpus.finished("pictures") == [0] and len(corpus) == 1
    with pytest.raises(ConfigError, match=r"1 of \d shards of its pictures are there; the same `hyperdream corpus col"):
        encode_latents(corpus, base)


def test_a_full_disk_loses_the_shard_at_work_and_no_other(
    people: Path, tmp_path: Path, base: DiffusersBase, monkeypatch: pytest.MonkeyPatch, bytes_of: Digests
) -> None:
    expected = bytes_of(collect(source_of(people), tmp_path / "undisturbed", SMALL).folder)
    for at in range(5):
        folder = tmp_path / f"full-{at}"
        with full_disk(monkeypatch, at), pytest.raises(OutputError, match=r"cannot be written .*No space left"):
            collect(source_of(people), folder, SMALL)
        assert {name: digest for name, digest in bytes_of(folder).items() if name.endswith(".safetensors")}.items() <= (
            expected.items()
        )  # fmt: skip
        assert bytes_of(collect(source_of(people), folder, SMALL).folder) == expected


def test_a_damaged_shard_is_made_anew_and_said(people: Path, corpus: Corpus, bytes_of: Digests) -> None:
    expected, said = bytes_of(corpus.folder), []
    path = corpus.folder / "pictures-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    (corpus.folder / "pictures-00000.safetensors").unlink()
    collect(source_of(people), corpus.folder, SMALL, say=said.append)
    assert bytes_of(corpus.folder) == expected
    assert len(said) == 2 and "00000.safetensors: is missing; it is made anew" in said[0]
    assert "pictures-00001.safetensors: is not a readable" in said[1] and said[1].endswith("It is made anew.")


def test_other_photographs_or_settings_than_it_was_begun_with_are_refused(people: Path, corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match=r"begun with size 64 \(now 96\). Ask for the same again"):
        collect(source_of(people), corpus.folder, CollectConfig(size=96, held_out=0.3))
    with pytest.raises(ConfigError, match=r"sources.0.views 4 \(now 2\)"):
        collect(source_of(people, views=2), corpus.folder, SMALL)
    (people / "anna" / "1.txt").write_text("somewhere else")
    with pytest.raises(ConfigError, match="begun with other files, or files of other sizes"):
        collect(source_of(people), corpus.folder, SMALL)
    photograph(people / "fritz.png", 1)
    with pytest.raises(ConfigError, match=r"sources.0.people 5 \(now 6\)"):
        collect(source_of(people), corpus.folder, SMALL)


def test_latents_are_the_base_s_own_in_half_precision(corpus: Corpus, base: DiffusersBase) -> None:
    encode_latents(corpus, base)
    subjects, rows = torch.tensor([1, 0, 4]), torch.tensor([2, 1, 0])
    found = Corpus.open(corpus.folder).take("latents", subjects, rows)
    torch.testing.assert_close(
        found, base.encode_image(corpus.take("pictures", subjects, rows)).half().float(), rtol=2e-3, atol=1e-4
    )
    facts = Corpus.open(corpus.folder).parts["latents"].facts
    assert facts["family"] == "miniature" and facts["fingerprint"] == base.fingerprint() and facts["size"] == 64


def test_another_base_is_refused_and_what_is_there_stays(
    corpus: Corpus, base: DiffusersBase, make_base: Callable[[int], DiffusersBase], bytes_of: Digests
) -> None:
    encode_latents(corpus, base)
    expected = bytes_of(corpus.folder)
    with pytest.raises(ConfigError, match=r"its latents were made with fingerprint .* remove latents.json and the fi"):
        encode_latents(Corpus.open(corpus.folder, ("pictures",)), make_base(1))
    assert bytes_of(corpus.folder) == expected


def test_latents_of_pictures_that_were_collected_anew_are_not_taken_for_theirs(
    people: Path, corpus: Corpus, base: DiffusersBase, bytes_of: Digests
) -> None:
    encode_latents(corpus, base)
    expected = bytes_of(corpus.folder)
    # The same names and sizes, so that only the bytes differ.
    for file in ("pictures.json", "corpus.json", *(path.name for path in corpus.folder.glob("pictures-*"))):
        (corpus.folder / file).unlink()
    collect(source_of(people, views=3), corpus.folder, SMALL)
    with pytest.raises(Exception, match=r"latents-00000.safetensors: was made of other pictures"):
        Corpus.open(corpus.folder)
    for file in ("pictures.json", "corpus.json", *(path.name for path in corpus.folder.glob("pictures-*"))):
        (corpus.folder / file).unlink()
    collect(source_of(people), corpus.folder, SMALL)
    assert bytes_of(corpus.folder) == expected


def test_pictures_that_are_smaller_than_the_base_s_are_refused_with_the_size(people: Path, tmp_path: Path) -> None:
    from tests.pipelines.conftest import random_base

    corpus = collect(source_of(people), tmp_path / "small", CollectConfig(size=32))
    with pytest.raises(ConfigError, match=r"has pictures of 32 px.*collect them again with --size 64"):
        encode_latents(corpus, random_base())


def test_the_manifests_say_what_each_shard_is(corpus: Corpus) -> None:
    record = json.loads((corpus.folder / "pictures.json").read_text())
    assert record["format"] == "hyperdream-corpus" and record["version"] == 1
    assert set(record["shards"]) == {str(index) for index in range(corpus.manifest.shards)}
    metadata, names = read_names(corpus.folder / "pictures-00000.safetensors")
    assert metadata["kind"] == "hyperdream-corpus-pictures" and names == ["pictures", "references"]
    shutil.copy(corpus.folder / "pictures.json", corpus.folder / "latents.json")
    with pytest.raises(Exception, match=r"latents.json: is the record of 'pictures'"):
        Corpus.open(corpus.folder)
