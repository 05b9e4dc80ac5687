"""The commands of corpora: from a folder of pictures to latents and features, killed, refused and inspected."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from hyperdream_core.pipelines.corpora.corpus import Corpus
from hyperdream_core.whole_file import is_part
from tests.kills import Commands, killed_and_resumed

COLLECT = ("corpus", "collect", "people", "--base", "miniature", "--stacked", "12", "--out", "corpus")
ENCODE = ("corpus", "encode", "corpus", "--base", "base", "--image-encoder", "predictor.safetensors", "--device", "cpu")


@pytest.fixture
def folder(run: Callable, base_folder: Path, predictor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six people with two pictures each, a base and a predictor."""
    here = tmp_path / "work"
    here.mkdir()
    monkeypatch.chdir(here)
    words = ("--people", "6", "--contexts", "2", "--size", "64", "--folders", "--out", "people")
    assert run("miniature", "render", *words).code == 0
    shutil.copytree(base_folder, here / "base")
    shutil.copy(predictor, here / "predictor.safetensors")
    return here


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_from_pictures_to_latents_and_features(run: Callable, refused: Callable, folder: Path) -> None:
    collected = run(*COLLECT, "--licence", "drawn by a program", "--json").json
    assert (collected["subjects"], collected["pictures"], collected["references"]) == (6, 12, 12)
    assert collected["captions"] == 12 and collected["size"] == 64 and collected["licence"] == "drawn by a program"
    report = run(*ENCODE, "--json").json
    assert {part: one["shards"] for part, one in report["parts"].items()} == {
        "pictures": 2, "latents": 2, "features": 2, "identities": 0,
    }  # fmt: skip
    corpus = Corpus.open(folder / "corpus")
    corpus.check("latents", "features", pictures=2, family="miniature")
    subjects, rows = torch.tensor([5, 0]), torch.tensor([1, 0])
    caption = (folder / "people" / "face-0006" / "2.txt").read_text().strip()
    assert corpus.captions(subjects, rows)[0] == caption and caption.count(", ") >= 2
    assert corpus.take("latents", subjects, rows).shape == (2, 32, 8, 8)
    # Doing all of it again does nothing.
    before = digests(folder / "corpus")
    assert run(*COLLECT).code == run(*ENCODE).code == 0 and digests(folder / "corpus") == before
    said = run("corpus", "inspect", "corpus", "--verify").out
    assert "6 subjects" in said and "drawn by a program" in said and "every byte is whole" in said


def test_features_are_those_that_the_predictor_itself_would_see(run: Callable, folder: Path) -> None:
    from hyperdream_core.pipelines.predictors.hypernetwork_predictor import read_hypernetwork_predictor

    assert run(*COLLECT).code == run(*ENCODE).code == 0
    corpus, subjects = Corpus.open(folder / "corpus"), torch.arange(6)
    encoder = read_hypernetwork_predictor(folder / "predictor.safetensors").network.encoder
    with torch.no_grad():
        expected = encoder.features(corpus.take("references", subjects))
    found = corpus.features(subjects)
    for name in ("tokens", "pooled"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=2e-3, atol=1e-3)


def test_damage_is_said_with_the_remedy_and_the_same_command_mends_it(
    run: Callable, refused: Callable, folder: Path
) -> None:
    assert run(*COLLECT).code == run(*ENCODE).code == 0
    before = digests(folder / "corpus")
    shard = folder / "corpus" / "latents-00001.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 255]))
    ran = run("corpus", "inspect", "corpus", "--verify")
    assert ran.code == 1 and "latents-00001.safetensors: is damaged" in ran.out and "`hyperdream corpus enc" in ran.out
    shard.write_bytes(content[:100])
    assert "latents-00001.safetensors" in refused("corpus", "inspect", "corpus")
    ran = run(*ENCODE)
    assert ran.code == 0 and "It is made anew." in ran.error and digests(folder / "corpus") == before


def test_what_cannot_be_a_corpus_is_refused_before_anything_is_loaded(
    run: Callable, refused: Callable, folder: Path
) -> None:
    assert "people: is no corpus" in refused("corpus", "encode", "people", "--base", "base")
    (folder / "empty").mkdir()
    assert "holds no photograph" in refused("corpus", "collect", "empty", "--out", "corpus")
    assert "is no folder" in refused("corpus", "collect", "nowhere", "--out", "corpus")
    assert not (folder / "corpus").exists()
    assert run(*COLLECT).code == 0
    said = refused("corpus", "collect", "people", "--base", "miniature", "--stacked", "12", "--size", "96", "--out",
                   "corpus")  # fmt: skip
    assert "begun with size 64 (now 96)" in said
    assert "so it is no image encoder" in refused("corpus", "encode", "corpus", "--image-encoder", "empty")


def test_people_are_invented_from_nothing_and_from_a_folder_of_identities(
    run: Callable, refused: Callable, folder: Path, identity: Path
) -> None:
    words = ("corpus", "invent", "--base", "base", "--people", "3", "--pictures", "2", "--steps", "1", "--no-filter")
    report = run(*words, "--out", "invented", "--json").json
    assert report["subjects"] == 3 and report["pictures"] == 6 and report["parts"]["identities"]["shards"] == 1
    assert report["sources"][0]["kind"] == "invented" and "1 of each layer" in report["sources"][0]["prior"]
    (folder / "one").mkdir()
    shutil.copy(identity, folder / "one")
    assert "needs 2 or more identities, got 1" in refused(*words, "--identities", "one", "--out", "other")
    shutil.copy(identity, folder / "one" / "other.safetensors")
    (folder / "contexts.txt").write_text("calm, photo\n\nsad, photo\n")
    report = run(*words, "--identities", "one", "--contexts", "contexts.txt", "--out", "other", "--json").json
    assert "Gaussian of 2 identities" in report["sources"][0]["prior"] and report["sources"][0]["contexts"] == 2
    (folder / "contexts.txt").write_text("\n")
    assert "holds no context" in refused(*words, "--contexts", "contexts.txt", "--out", "third")


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands() as running:
        yield running


@pytest.mark.slow
def test_commands_killed_at_random_moments_end_with_the_bytes_of_undisturbed_ones(
    commands: Commands, folder: Path
) -> None:
    times = {}
    for words in (COLLECT, ENCODE):
        undisturbed = commands.run(words, folder)
        assert undisturbed.code == 0, undisturbed.said
        times[words] = undisturbed.seconds
    expected, chance, kills = digests(folder / "corpus"), random.Random(19), 0
    while kills < 12:
        shutil.rmtree(folder / "corpus")
        for words in (COLLECT, ENCODE):
            story = killed_and_resumed(commands, words, folder, times[words], chance, kills=3)
            kills += story.kills
        assert digests(folder / "corpus") == expected
        assert not [path for path in (folder / "corpus").iterdir() if is_part(path)], "parts were left behind"
        print(f"{kills} kills so far", flush=True)
