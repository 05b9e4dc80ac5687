from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from hyperdream_core.errors import ConfigError, ReferenceImageError
from hyperdream_core.faces.cascade import CascadeDetector
from hyperdream_core.pipelines.corpora.collect import collect
from hyperdream_core.pipelines.corpora.photographs import PhotographsConfig, people_in
from tests.pipelines.corpora.conftest import SMALL, photograph, source_of


def test_a_picture_that_cannot_be_used_is_listed_with_the_reason_and_its_person_stays(
    people: Path, tmp_path: Path
) -> None:
    (people / "anna" / "0.png").write_bytes(b"\x89PNG, cut short")
    (people / "anna" / "notes.md").write_text("passed over")
    (people / "bela" / "0.txt").write_bytes(b"\xff\xfe\xff")
    (people / "bela" / "older").mkdir()
    (people / "nobody").mkdir()
    photograph(people / "bela" / "9.png", 1)
    corpus = collect(source_of(people, most=3), tmp_path / "corpus", SMALL)
    assert [one.name for one in corpus.subjects] == ["anna", "bela", "cleo", "dora", "emil"]
    why = {one.what: one.why for one in corpus.rejected}
    assert set(why) == {"anna/0.png", "bela/0.png", "bela/9.png", "bela/older", "nobody"}
    assert "damaged" in why["anna/0.png"] or "not a picture" in why["anna/0.png"]
    assert "0.txt: is no UTF-8" in why["bela/0.png"] and "beyond the first 3" in why["bela/9.png"]
    assert "deeper" in why["bela/older"] and why["nobody"] == "holds no photograph"
    # Numbers of photographs are those of the folder, whatever was rejected between them.
    assert corpus.subjects[1].pictures == (1, 2) and corpus.subjects[0].references == (1,) * 4


def test_people_with_too_few_photographs_are_left_out_and_named(people: Path, tmp_path: Path) -> None:
    corpus = collect(source_of(people, least=2), tmp_path / "corpus", SMALL)
    assert [one.name for one in corpus.subjects] == ["anna", "bela"]
    assert {one.what: one.why for one in corpus.rejected}["cleo"] == (
        "1 of 1 photographs can be used, 2 are needed"
    )  # fmt: skip
    corpus.check(pictures=2)


def test_photographs_without_a_face_are_rejected_and_a_folder_of_nothing_else_is_refused(
    people: Path, tmp_path: Path, astronaut: Image.Image
) -> None:
    (people / "zoe").mkdir()
    astronaut.save(people / "zoe" / "zoe.jpg")
    for name in ("anna", "bela"):
        shutil.rmtree(people / name)
    prepare = replace(source_of(people).prepare, detector="cascade")
    source = replace(source_of(people), prepare=prepare, detector=CascadeDetector())
    corpus = collect(source, tmp_path / "corpus", SMALL)
    assert [one.name for one in corpus.subjects] == ["zoe"]
    why = {one.what: one.why for one in corpus.rejected}
    assert why["dora.png"].startswith("dora.png shows no face: best score") and "dora" in why
    shutil.rmtree(people / "zoe")
    with pytest.raises(ReferenceImageError, match=r"none of the 3 pictures can be used; cleo/0.png: .* shows no face"):
        collect(replace(source_of(people), prepare=prepare, detector=CascadeDetector()), tmp_path / "other", SMALL)


def test_folders_that_hold_nobody_or_two_of_one_name_are_refused(people: Path, tmp_path: Path) -> None:
    with pytest.raises(ReferenceImageError, match="is no folder, but one with photographs of people is expected"):
        people_in(tmp_path / "nowhere", 20)
    (tmp_path / "empty" / "anna").mkdir(parents=True)
    with pytest.raises(ReferenceImageError, match="holds no photograph, neither in itself nor in its subfolders; put"):
        people_in(tmp_path / "empty", 20)
    photograph(people / "anna.png", 1)
    with pytest.raises(ConfigError, match="names two people 'anna'; rename one"):
        people_in(people, 20)


def test_captions_that_nobody_wrote_are_read_off(people: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    def describe(crops: torch.Tensor) -> list[str]:
        seen.append(len(crops))
        return ["calm"] * len(crops)

    corpus = collect(source_of(people, describe), tmp_path / "corpus", SMALL)
    assert [one.captions for one in corpus.subjects[:2]] == [("calm", "smiling, at the beach"), ("calm",) * 3]
    assert sum(seen) == 7


def test_views_follow_from_the_name_and_not_from_the_company(people: Path, tmp_path: Path) -> None:
    whole = collect(source_of(people), tmp_path / "whole", SMALL)
    for name in ("anna", "cleo"):
        shutil.rmtree(people / name)
    part = collect(source_of(people), tmp_path / "part", SMALL)
    rows = torch.arange(4)
    for theirs, ours in ((3, 1), (4, 2)):
        assert torch.equal(
            whole.take("references", torch.full((4,), theirs), rows),
            part.take("references", torch.full((4,), ours), rows),
        )


@pytest.mark.parametrize(
    ("settings", "met"),
    [({"least": 0}, "least must lie in 1"), ({"stacked": 0}, "stacked"), ({"least": 3, "most": 2}, "got 3 and 2")],
)
def test_settings_out_of_range_are_refused(settings: dict[str, int], met: str) -> None:
    with pytest.raises(ConfigError, match=met):
        PhotographsConfig(**settings)
