"""`miniature build` goes on from whatever a kill, a full disk or a hand has left: the same bytes, or one sentence.

What is trained is stood in for by small files here; training's own checkpoints are tested where training is.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hyperdream_core import whole_file
from hyperdream_core.errors import ConfigError, HyperDreamError, OutputError
from hyperdream_core.miniature.recipe import results, stages
from hyperdream_core.miniature.recipe.materials import Materials, RecipeConfig, new_image_encoder, quick
from hyperdream_core.miniature.recipe.recipe import Recipe

from .damage import (
    DAMAGED_MATERIALS,
    DAMAGED_RESULTS,
    Damage,
    as_file,
    as_folder,
    as_link,
    as_pipe,
    cut,
    empty,
    no_record,
    put,
    remove,
)

TINY = replace(quick(), people=4, pets=2, judge_people=2, judge_contexts=2)
MATERIALS = ("corpus", "latents", "encoder-only", "tokenizer")


def stand_in(name: str) -> Callable[..., None]:
    """A stage that writes what it should, of no use."""

    def train(recipe: Materials, *rounds: int) -> None:
        result = recipe.result("-".join([name, *map(str, rounds)]))
        with result.made() as part:
            if name == "autoencoder":
                recipe.encoder_only().save_pretrained(part)
                return
            torch.manual_seed(0)
            weights = new_image_encoder().state_dict() if name == "encoder" else {"of": torch.tensor(rounds or (0,))}
            for file in result.files:
                (part / file).parent.mkdir(exist_ok=True)
                if file.endswith(".json"):
                    (part / file).write_text(json.dumps({"of": name, "rounds": rounds}))
                else:
                    save_file({key: value.contiguous() for key, value in weights.items()}, part / file)

    return train


@pytest.fixture(autouse=True)
def stages_stood_in_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "_known", {})
    for function, name in {"train_decoder": "autoencoder", "train_base": "base", "train_judges": "judges",
                           "train_encoder": "encoder", "train_hypernetwork": "hypernetwork-0"}.items():  # fmt: skip
        monkeypatch.setattr(stages, function, stand_in(name))


def render(folder: Path) -> list[str]:
    """Everything that needs no training, and what was said."""
    said: list[str] = []
    results._known.clear()
    recipe = Recipe(folder, TINY, say=said.append)
    for name in ("faces", "pets", "judges", "references"):
        recipe.corpus(name)
    recipe.latents("faces"), recipe.latents("pets"), recipe.encoder_only(), recipe.tokenizer()
    return said


def build(folder: Path, config: RecipeConfig = TINY, *, in_this_process: bool = False) -> list[str]:
    """Everything that `publish` needs, and what was said."""
    said: list[str] = []
    recipe = Recipe(folder, config, say=said.append)
    if not in_this_process:
        results._known.clear()
    recipe.base(), recipe.judges(), recipe.autoencoder(), recipe.encoder(), recipe.features(), recipe.hypernetwork()
    return said


def contents(folder: Path) -> dict[str, str]:
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()
            if name != "seconds.json"}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        stages_stood_in_for.__wrapped__(patch)  # type: ignore[attr-defined]
        assert build(folder) == []
    return folder


@pytest.fixture
def materials(finished: Path, tmp_path: Path) -> Path:
    """As a build leaves them that is stopped before its first training."""
    for name in MATERIALS:
        shutil.copytree(finished / name, tmp_path / "materials" / name, copy_function=os.link)
    for path in finished.glob("*.made.json"):
        if path.name.startswith(MATERIALS):
            os.link(path, tmp_path / "materials" / path.name)
    return tmp_path / "materials"


@pytest.fixture
def work(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "work", copy_function=os.link))


def names_of(states: list[tuple[Damage, str]]) -> list[str]:
    return [f"{damage.__name__} {name}" for damage, name in states]


@pytest.mark.parametrize(("damage", "name"), DAMAGED_MATERIALS, ids=names_of(DAMAGED_MATERIALS))
def test_material_that_is_damaged_or_gone_is_made_anew(
    materials: Path, finished: Path, damage: Damage, name: str
) -> None:
    damage(materials / name)
    said = render(materials)
    made = {one: digest for one, digest in contents(finished).items() if one.startswith(MATERIALS)}
    if name == "corpus/faces.npy.made.json":
        assert made.pop(name) and "keeps no record" in said[0]
    assert contents(materials) == made
    assert damage is remove or any(name.removesuffix(".made.json").split("/")[0] in text for text in said)


@pytest.mark.parametrize(("damage", "name"), DAMAGED_RESULTS, ids=names_of(DAMAGED_RESULTS))
def test_a_result_that_is_damaged_or_gone_is_made_anew_and_nothing_else_is(
    work: Path, finished: Path, damage: Damage, name: str
) -> None:
    result = name.split("/")[0].removesuffix(".made.json")
    before = {path.name: path.stat().st_ino for path in work.iterdir()}
    damage(work / name)
    said = build(work)
    assert contents(work) == contents(finished)
    assert damage is remove or any(result in text and "made anew" in text for text in said)
    left = {path.name for path in work.iterdir() if path.stat().st_ino == before[path.name]}
    assert set(before) - left <= {result, f"{result}.made.json", "seconds.json"}


MISPLACED = [
    (as_file, "base-2"), (as_file, "encoder-only"), (as_file, "tokenizer"), (as_file, "judges"), (as_file, "features"),
    (as_file, "corpus"), (as_file, "latents"), (as_folder, "corpus/faces.npy"), (as_folder, "latents/faces.npy"),
    (as_folder, "latents/pets.npy"), (as_link, "hypernetwork-0-2"), (as_link, "corpus/pets.npy"),
    (as_pipe, "corpus/references.npy"), (as_pipe, "autoencoder"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "name"), MISPLACED, ids=names_of(MISPLACED))
def test_what_lies_where_a_result_belongs_is_named_and_stays(
    work: Path, materials: Path, damage: Damage, name: str
) -> None:
    folder, make = (materials, render) if name.startswith(MATERIALS) else (work, build)
    damage(folder / name)
    was = (folder / name).lstat()
    with pytest.raises(OutputError, match=rf"{name}.*(Remove|remove)"):
        make(folder)
    now = (folder / name).lstat()
    assert (now.st_ino, now.st_mode, now.st_size, now.st_mtime) == (was.st_ino, was.st_mode, was.st_size, was.st_mtime)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"base-2": "long"}', '{"base-2": NaN}', "[" * 9_000])
def test_seconds_that_cannot_be_read_are_begun_anew(work: Path, finished: Path, text: str) -> None:
    put(work / "seconds.json", text.encode())
    remove(work / "base-2")
    assert any("seconds.json" in one for one in build(work))
    assert set(json.loads((work / "seconds.json").read_text())) == {"base-2"}
    assert contents(work) == contents(finished)


def test_parts_that_a_killed_process_has_left_go_when_their_place_is_written(work: Path, finished: Path) -> None:
    left = f"{whole_file._machine()}-{2**22 + 1}-00000000.part"
    (work / "features" / f".tokens.npy.{left}").write_bytes(bytes(99))
    (work / f".base-2.{left}").mkdir()
    (work / f".base-2.{left}" / "model_index.json").write_text("{")
    remove(work / "features" / "tokens.npy")
    remove(work / "base-2")
    build(work)
    assert contents(work) == contents(finished)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"people": 5}, r"base-2: was made with people 4 \(now 5\)"),
        ({"pets": 3}, r"base-2: was made with pets 2 \(now 3\)"),
        ({"base": replace(TINY.base, warmup=2)}, r"base-2: was made with base.warmup 1 \(now 2\)"),
        ({"decoder": replace(TINY.decoder, steps=3)}, r"judges: was made with decoder.steps 2 \(now 3\)"),
        ({"judge_people": 3}, r"judges: was made with judge_people 2 \(now 3\)"),
        ({"encoder": replace(TINY.encoder, steps=3)}, r"encoder: was made with encoder.steps 2 \(now 3\)"),
        ({"hypernetwork": replace(TINY.hypernetwork, clip=2.0)}, r"-0-2: was made with hypernetwork.clip 1"),
        ({"processes": 2}, r"base-2: was made with processes 1 \(now 2\)"),
    ],
)  # fmt: skip
def test_other_settings_than_a_result_was_made_by_are_refused_by_name(
    work: Path, finished: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        build(work, replace(TINY, **change))
    assert contents(work) == contents(finished)


def test_how_often_checkpoints_are_written_the_seed_and_the_rounds_may_change(work: Path, finished: Path) -> None:
    often = replace(TINY, base=replace(TINY.base, save_every=7), seed=1, rounds=2)
    results._known.clear()
    assert Recipe(work, often).base() == work / "base-2"
    assert Recipe(work, replace(TINY, rounds=1)).hypernetwork() == work / "hypernetwork-0-1"
    assert contents(work) == contents(finished)


def test_what_an_older_release_made_is_taken_and_said(work: Path, finished: Path) -> None:
    for path in work.rglob("*.made.json"):
        path.unlink()
    said = build(work)
    made = {"base-2", "judges", "autoencoder", "encoder", "features/tokens.npy", "features/pooled.npy",
            "hypernetwork-0-2"}  # fmt: skip
    assert {text.partition(": keeps no record")[0] for text in said} == {str(work / name) for name in made}
    assert contents(work) == {name: one for name, one in contents(finished).items() if not name.endswith(".made.json")}


@pytest.mark.parametrize(("damage", "name"), [one for one in DAMAGED_RESULTS if one[0] in (cut, empty, remove)
                                              and "made.json" not in one[1]])  # fmt: skip
def test_what_an_older_release_left_half_done_is_made_anew(
    work: Path, finished: Path, damage: Damage, name: str
) -> None:
    for path in work.rglob("*.made.json"):
        path.unlink()
    damage(work / name)
    build(work)
    found = contents(work)
    assert found == {one: digest for one, digest in contents(finished).items() if one in found}
    assert {one for one in contents(finished) if not one.endswith(".made.json")} <= set(found)


def test_material_of_another_size_or_another_world_is_refused_even_without_a_record(materials: Path) -> None:
    work, faces = materials, materials / "corpus" / "faces.npy"
    no_record(faces)
    with pytest.raises(ConfigError, match=r"faces.npy: holds \(4, 2, 3, 64, 64\) pictures, but \(5, 2, 3, 64, 64\)"):
        Recipe(work, replace(TINY, people=5)).corpus("faces")
    pictures = np.load(faces)
    remove(faces)
    np.save(faces, 255 - pictures)
    with pytest.raises(ConfigError, match=r"faces\.npy: shows other pictures than this release draws"):
        Recipe(work, TINY).corpus("faces")


def test_a_disk_that_fills_up_at_any_file_stops_with_one_sentence_and_the_build_goes_on(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush, met = whole_file._flush, set()
    names = whole_file._PART

    def full_once(path: Path) -> None:
        inside = [names.fullmatch(part)["name"] if names.fullmatch(part) else part for part in path.parts]  # type: ignore[index]
        if (place := tuple(inside)) not in met:
            met.add(place)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(path)

    monkeypatch.setattr(whole_file, "_flush", full_once)
    stops = 0
    while True:
        try:
            build(tmp_path / "work", in_this_process=True)
            break
        except OutputError as error:
            assert "No space left on device" in str(error) and "\n" not in str(error)
            stops += 1
            assert not [path for path in (tmp_path / "work").rglob("*") if whole_file.is_part(path)]
    # The seconds' file is not worth stopping for.
    assert stops == len(met) - 1 > 40
    assert contents(tmp_path / "work") == contents(finished)


def test_a_corpus_that_finds_no_room_takes_none_and_ends_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", no_room, raising=False)
    with pytest.raises(OutputError, match="No space left on device"):
        Recipe(tmp_path, TINY).corpus("faces")
    assert list((tmp_path / "corpus").iterdir()) == []


def test_a_work_folder_that_is_a_file_or_the_weights_own_is_refused_before_anything(tmp_path: Path) -> None:
    from hyperdream_core.miniature.recipe.publish import publish

    (tmp_path / "file").write_text("a file")
    for work, out in (("file", "out"), ("file/below", "out"), ("work", "file"), ("same", "same")):
        with pytest.raises(HyperDreamError, match=r"file|same"):
            publish(Recipe(tmp_path / work, TINY), tmp_path / out)
    for place in ("out/base", "out/judges", "out/manifest.json/", "work/miniature.safetensors/"):
        path = tmp_path / place
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if place.endswith("/") else path.write_text("a file")
        with pytest.raises(OutputError, match=path.name):
            publish(Recipe(tmp_path / "work", TINY), tmp_path / "out")
        remove(path)
    assert not list((tmp_path / "work").iterdir()) and not list((tmp_path / "out").iterdir())
