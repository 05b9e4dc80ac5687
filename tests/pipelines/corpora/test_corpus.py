from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch

from hyperdream_core.errors import BaseMismatchError, ConfigError, FileFormatError
from hyperdream_core.pictures.files import read_image, square_crop
from hyperdream_core.pipelines.corpora.corpus import Corpus
from hyperdream_core.pipelines.corpora.encode import encode_latents
from hyperdream_core.pipelines.corpora.subjects import is_held_out
from hyperdream_core.pipelines.diffusers.diffusers_base import DiffusersBase

ALL = torch.arange(5)


def test_what_is_taken_is_the_picture_that_was_asked_for(corpus: Corpus, people: Path) -> None:
    names = [one.name for one in corpus.subjects]
    assert names == ["anna", "bela", "cleo", "dora", "emil"] and corpus.picture_counts.tolist() == [2, 3, 1, 1, 1]
    # Across shards, in an order of their own, and twice.
    subjects, rows = torch.tensor([4, 1, 0, 1, 4]), torch.tensor([0, 2, 1, 0, 0])
    files = ["emil.png", "bela/2.png", "anna/1.png", "bela/0.png", "emil.png"]
    taken = corpus.take("pictures", subjects, rows)
    assert corpus.manifest.shards > 1 and taken.shape == (5, 3, 64, 64)
    for picture, file in zip(taken, files, strict=True):
        torch.testing.assert_close(picture, square_crop(read_image(people / file), 64), rtol=0, atol=0.5 / 255 + 1e-6)


def test_references_of_several_photographs_are_those_and_of_one_are_other_views(corpus: Corpus) -> None:
    assert corpus.reference_counts.tolist() == [2, 3, 4, 4, 4]
    bela = torch.tensor([1, 1, 1]), torch.arange(3)
    assert torch.equal(corpus.take("references", *bela), corpus.take("pictures", *bela))
    views = corpus.take("references", torch.full((4,), 2), torch.arange(4))
    picture = corpus.take("pictures", torch.tensor([2]))
    assert all(float((view - picture[0]).abs().mean()) > 0.02 for view in views)
    assert float((views[0] - views[1]).abs().mean()) > 0.02


def test_captions_are_those_beside_the_photographs(corpus: Corpus) -> None:
    assert corpus.captions(torch.tensor([0, 0, 3]), torch.tensor([0, 1, 0])) == ["", "smiling, at the beach", ""]


def test_the_split_is_by_person_and_a_hash_of_the_name_decides(corpus: Corpus) -> None:
    assert sorted([*corpus.held_out.tolist(), *corpus.training.tolist()]) == list(range(5))
    names = [f"person {number}" for number in range(2000)]
    out = [name for name in names if is_held_out(name, 0.1)]
    # Five standard deviations of the binomial.
    assert abs(len(out) - 200) < 5 * (2000 * 0.1 * 0.9) ** 0.5
    assert set(out) <= {name for name in names if is_held_out(name, 0.2)}
    # As the first release split them: another hash would move people between the two sides of every split there is.
    assert [name for name in names[:60] if is_held_out(name, 0.05)] == ["person 45", "person 53"]
    assert not any(is_held_out(name, 0.0) for name in names)


def test_a_row_that_is_not_there_is_refused_by_numbers(corpus: Corpus) -> None:
    one = torch.tensor([1])
    for subjects, rows, met in (
        (one, torch.tensor([3]), "subject 1 has 3 rows of 'pictures', counted from 0, got 3"),
        (one, torch.tensor([-1]), "got -1"),
        (torch.tensor([5]), torch.tensor([0]), "holds subjects 0..4, got"),
        (ALL, torch.tensor([0]), "two lists of one length"),
        (torch.tensor([], dtype=torch.long), None, "rows of no subject"),
    ):
        with pytest.raises(ConfigError, match=met):
            corpus.take("pictures", subjects, rows)
    with pytest.raises(ConfigError, match="has no latents; `hyperdream corpus encode` makes the rest"):
        corpus.take("latents", ALL)
    with pytest.raises(ConfigError, match="a corpus has no 'picture'; known: references, pictures"):
        corpus.take("picture", ALL)


def test_what_a_training_needs_and_is_not_there_is_said_with_the_remedy(corpus: Corpus, base: DiffusersBase) -> None:
    with pytest.raises(ConfigError, match=r"0 of \d shards of its latents are there; `hyperdream corpus encode`"):
        corpus.check("latents")
    with pytest.raises(ConfigError, match=r"3 of its 5 subjects have fewer than 2 pictures.*'cleo'.*--least 2"):
        corpus.check(pictures=2)
    encode_latents(corpus, base)
    corpus.check("latents", family="miniature", fingerprint=base.fingerprint())
    with pytest.raises(BaseMismatchError, match=r"made by another base, fingerprint .* remove latents.json"):
        corpus.check("latents", fingerprint="0" * 64)


def test_a_damaged_shard_is_refused_on_opening_or_found_by_its_digest(corpus: Corpus, tmp_path: Path) -> None:
    path = corpus.folder / "pictures-00000.safetensors"
    whole = path.read_bytes()
    for content, met in (
        (whole[:-1], "pictures-00000.safetensors: .*(readable|truncated)"),
        (b"", "is empty"),
        (whole.replace(b'"shard":"0"', b'"shard":"1"'), "as another shard"),
        (whole.replace(b"anna", b"anne", 1), None),
        (whole[:-1] + bytes([whole[-1] ^ 1]), None),
    ):
        path.write_bytes(content)
        if met is not None:
            with pytest.raises(FileFormatError, match=met):
                Corpus.open(corpus.folder)
        else:
            (damaged,) = Corpus.open(corpus.folder).verify()
            assert "pictures-00000.safetensors: is damaged" in str(damaged)
    path.unlink()
    with pytest.raises(FileFormatError, match=r"pictures-00000.safetensors: cannot be opened"):
        Corpus.open(corpus.folder)
    path.write_bytes(whole)
    assert Corpus.open(corpus.folder).verify() == []


def test_a_folder_that_is_no_corpus_a_newer_one_and_an_altered_one_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"is no corpus, for it has no corpus.json\. `hyperdream corpus collect`"):
        Corpus.open(tmp_path)
    manifest = corpus.folder / "corpus.json"
    text = manifest.read_text()
    for old, new, met in (
        ('"version": 1', '"version": 2', "has version 2, but this release reads up to 1. Update HyperDream"),
        ('"version": 1', '"version": true', "a whole number is expected"),
        ('"hyperdream-corpus"', '"something"', "does not say that it belongs to a corpus"),
        ('"size": 64', '"size": 63', "was altered .*size must be a multiple of 8"),
        ('"plan"', '"plane"', "was altered"),
    ):
        manifest.write_text(text.replace(old, new, 1))
        with pytest.raises(FileFormatError, match=met):
            Corpus.open(corpus.folder)


def test_many_processes_read_one_corpus(corpus: Corpus) -> None:
    expected = corpus.take("pictures", ALL)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for found in pool.map(_first_pictures, [corpus] * 2):
            assert torch.equal(torch.from_numpy(found), expected)


def _first_pictures(corpus: Corpus) -> object:
    assert not corpus._mapped, "mapped files were sent instead of mapped anew"
    return corpus.take("pictures", ALL).numpy()
