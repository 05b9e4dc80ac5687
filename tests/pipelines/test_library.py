"""The library of saved identities, on odd names, strangers' files and names that are taken."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperdream_core import errors
from hyperdream_core.bases import get_base
from hyperdream_core.formats import identity_file as adapter_file
from hyperdream_core.formats.file_names import check_name
from hyperdream_core.ops import lidb
from hyperdream_core.pipelines.library import Library

PNG = b"\x89PNG\r\n\x1a\n and the rest of a picture"


def an_identity(**facts: str) -> Any:
    base = get_base("miniature")
    generator = torch.Generator().manual_seed(3)
    coefficients = {}
    for layer in base.layers("attention"):
        p, a = lidb.basis_sizes(layer.in_features, layer.out_features, 5, 7)
        draw = [torch.randn(shape, generator=generator) for shape in ((1, p), (a, 1))]
        coefficients[layer.name] = lidb.LidbCoefficients(down=draw[0], up=draw[1])
    return adapter_file.Identity(
        family="miniature", target_set="attention", rank=1, down_dim=5, up_dim=7, coefficients=coefficients,
        made_by=facts,
    )  # fmt: skip


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("stored") / "one.safetensors"
    adapter_file.write_identity(path, an_identity(notes="from the beach", strength="0.8"))
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "identities").mkdir()
    return tmp_path / "identities"


@pytest.fixture
def library(folder: Path) -> Any:
    return Library(lambda: [folder])


def put(folder: Path, name: str, content: bytes, picture: bool = False) -> Path:
    path = folder / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if picture:
        path.with_suffix(".png").write_bytes(PNG)
    return path


def names(library: Any) -> list[str]:
    return sorted(entry.name for entry in library.entries())


def test_an_entry_says_what_the_file_says(library: Any, folder: Path, stored: bytes) -> None:
    path = put(folder, "mara", stored, picture=True)
    (entry,) = library.entries()
    assert (entry.name, entry.title, entry.family) == ("mara.safetensors", "mara", "miniature")
    assert (entry.notes, entry.strength, entry.identifier, entry.rank) == ("from the beach", 0.8, "sks", 1)
    assert (entry.problem, entry.bytes) == ("", len(stored))
    assert entry.preview == path.with_suffix(".png").stat().st_mtime


def test_odd_names_are_listed_found_and_renamed(library: Any, folder: Path, stored: bytes) -> None:
    odd = ["真央", "a.b.c", "with space", "<img src=x onerror=y>", "%2e%2e", "-rf", "Ünïcödé 👩"]
    if sys.platform == "win32":
        odd = [name for name in odd if "<" not in name]
    for name in odd:
        put(folder, name, stored, picture=True)
    assert names(library) == sorted(f"{name}.safetensors" for name in odd)
    for number, name in enumerate(odd):
        assert library.rename(f"{name}.safetensors", f"person {number}") == f"person {number}.safetensors"
    assert len(library.entries()) == len(odd) and all(entry.preview for entry in library.entries())


def test_subfolders_are_part_of_the_name_and_kept(library: Any, folder: Path, stored: bytes) -> None:
    put(folder, os.path.join("family", "mara"), stored)
    assert names(library) == [os.path.join("family", "mara.safetensors")]
    assert library.rename(names(library)[0], "lena") == os.path.join("family", "lena.safetensors")
    assert (folder / "family" / "lena.safetensors").read_bytes() == stored


def test_predictors_and_hidden_files_are_no_identities(library: Any, folder: Path, stored: bytes) -> None:
    put(folder, os.path.join("predictors", "sd15"), stored)
    put(folder, ".half written", stored)
    put(folder, os.path.join(".trash", "old"), stored)
    assert not library.entries()


def test_the_first_folder_wins_and_a_missing_one_is_empty(tmp_path: Path, stored: bytes) -> None:
    first = put(tmp_path / "one", "mara", stored)
    put(tmp_path / "two", "mara", stored)
    library = Library(lambda: [tmp_path / "none", tmp_path / "one", tmp_path / "two"])
    assert names(library) == ["mara.safetensors"]
    assert library.find("mara.safetensors") == first


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "empty"),
        (b"\x80\x02}q\x00.", "old PyTorch file"),
        (b"PK\x03\x04 and so on", "old PyTorch file"),
        (b"\xff" * 64, "truncated or no safetensors file"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00{}", "does not say what it holds"),
        (b"\x08\x00\x00\x00\x00\x00\x00\x00{" + b"[" * 7, "not a readable safetensors file"),
    ],
)
def test_a_strangers_file_is_listed_with_its_problem(
    library: Any, folder: Path, stored: bytes, content: bytes, problem: str
) -> None:
    put(folder, "hostile", content)
    put(folder, "mara", stored)
    problems = {entry.title: entry.problem for entry in library.entries()}
    assert problem in problems["hostile"] and problems["mara"] == ""


def test_altered_identities_are_listed_with_their_problem(library: Any, folder: Path, stored: bytes) -> None:
    size = int.from_bytes(stored[:8], "little")
    header = json.loads(stored[8 : 8 + size])
    altered = {"truncated": stored[:-5]}
    for name, facts in {
        "newer": {"version": "99"},
        "foreign": {"family": "unheard of"},
        "deep": {"made_by": "[" * 100_000},
        "list": {"made_by": "[1]"},
    }.items():
        text = json.dumps({**header, "__metadata__": {**header["__metadata__"], **facts}}).encode()
        text += b" " * (-len(text) % 8)
        altered[name] = len(text).to_bytes(8, "little") + text + stored[8 + size :]
    for name, content in altered.items():
        put(folder, name, content)
    problems = {entry.title: entry.problem for entry in library.entries()}
    assert set(problems) == set(altered) and all(problems.values())
    assert "Update HyperDream" in problems["newer"] and "unheard of" in problems["foreign"]


def test_a_file_too_large_for_an_identity_is_not_read(library: Any, folder: Path) -> None:
    with open(folder / "checkpoint.safetensors", "wb") as file:
        file.truncate(2_000_000_000)
    (entry,) = library.entries()
    assert "2000 MB" in entry.problem and "under 64 MB" in entry.problem


@pytest.mark.parametrize("strength", ["nan", "1e999", "", "7", "one", "0.5; drop"])
def test_a_strangers_strength_counts_only_if_it_is_one(library: Any, folder: Path, strength: str) -> None:
    adapter_file.write_identity(folder / "mara.safetensors", an_identity(strength=strength))
    assert library.entries()[0].strength == 1.0


@pytest.mark.parametrize(
    "name", ["", "..", "../secret.safetensors", "mara", "/etc/passwd", "mara.safetensors/..", "\0"]
)
def test_only_names_in_the_listing_can_be_named(library: Any, folder: Path, stored: bytes, name: str) -> None:
    put(folder, "mara", stored)
    put(folder.parent, "secret", stored)
    for action in (library.find, library.preview, library.delete, lambda n: library.rename(n, "x"), library.annotate):
        with pytest.raises(errors.ConfigError, match="there is no identity"):
            action(name)
    assert (folder.parent / "secret.safetensors").exists() and names(library) == ["mara.safetensors"]


UNUSABLE = ["", "  ", ".hidden", "dot.", "x" * 101, "CON", "nul.txt", "what?", "C:x"]
UNUSABLE += ["../up", "a/b", "a\\b", "/abs", "a\nb", "a\0b", "a\u202eb", "\ud800"]


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_name_that_no_file_can_have_is_refused(library: Any, folder: Path, stored: bytes, name: str) -> None:
    put(folder, "mara", stored)
    with pytest.raises(errors.ConfigError, match="cannot be a name"):
        library.rename("mara.safetensors", name)
    assert names(library) == ["mara.safetensors"]


def test_a_name_is_taken_without_spaces_around_it_and_without_its_ending() -> None:
    assert check_name("  mara lee.safetensors ") == "mara lee"
    assert check_name("真央.v2") == "真央.v2"


@pytest.mark.parametrize("taken", ["lena.safetensors", "lena.png"])
def test_renaming_onto_something_changes_nothing(library: Any, folder: Path, stored: bytes, taken: str) -> None:
    put(folder, "mara", stored, picture=True)
    (folder / taken).write_bytes(b"somebody else's")
    with pytest.raises(errors.ConfigError, match=rf"{taken}' already exists"):
        library.rename("mara.safetensors", "lena")
    assert (folder / taken).read_bytes() == b"somebody else's"
    assert (folder / "mara.safetensors").read_bytes() == stored and (folder / "mara.png").read_bytes() == PNG


def test_renaming_to_itself_changes_nothing(library: Any, folder: Path, stored: bytes) -> None:
    put(folder, "mara", stored)
    assert library.rename("mara.safetensors", "mara") == "mara.safetensors"
    assert names(library) == ["mara.safetensors"]


def test_a_rename_that_fails_half_way_is_undone(
    library: Any, folder: Path, stored: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder, "mara", stored, picture=True)
    rename = os.rename

    def failing(source: Path, target: Path) -> None:
        if Path(target).name == "lena.png":
            raise PermissionError(13, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(errors.OutputError, match="could not be renamed"):
        library.rename("mara.safetensors", "lena")
    assert sorted(path.name for path in folder.iterdir()) == ["mara.png", "mara.safetensors"]


def test_deleting_takes_the_picture_along_and_nothing_else(library: Any, folder: Path, stored: bytes) -> None:
    put(folder, "mara", stored, picture=True)
    put(folder, "mara2", stored, picture=True)
    (folder / "mara.txt").write_text("mine")
    library.delete("mara.safetensors")
    assert sorted(path.name for path in folder.iterdir()) == ["mara.txt", "mara2.png", "mara2.safetensors"]


def test_an_unreadable_file_can_be_deleted(library: Any, folder: Path) -> None:
    put(folder, "hostile", b"\xff" * 64)
    library.delete("hostile.safetensors")
    assert not library.entries()


def test_only_a_png_beside_it_is_a_preview(library: Any, folder: Path, stored: bytes) -> None:
    path = put(folder, "mara", stored)
    assert library.preview("mara.safetensors") is None
    path.with_suffix(".png").write_bytes(b"<script>not a picture</script>")
    assert library.preview("mara.safetensors") is None and library.entries()[0].preview is None
    path.with_suffix(".png").write_bytes(PNG)
    assert library.preview("mara.safetensors") == path.with_suffix(".png")


def test_notes_and_strength_are_kept_in_the_file_and_its_numbers_stay(
    library: Any, folder: Path, stored: bytes
) -> None:
    path = put(folder, "mara", stored)
    before = adapter_file.read_identity(path)
    library.annotate("mara.safetensors", "glasses 👓\n<b>bold</b>", 0.65)
    after, (entry,) = adapter_file.read_identity(path), library.entries()
    assert (entry.notes, entry.strength) == ("glasses 👓\n<b>bold</b>", 0.65)
    for name, coefficients in before.coefficients.items():
        torch.testing.assert_close(after.coefficients[name].down, coefficients.down, rtol=0, atol=0)
        torch.testing.assert_close(after.coefficients[name].up, coefficients.up, rtol=0, atol=0)
    library.annotate("mara.safetensors", strength=1.5)
    assert (library.entries()[0].notes, library.entries()[0].strength) == (entry.notes, 1.5)


def test_what_cannot_be_noted_is_refused(library: Any, folder: Path, stored: bytes) -> None:
    path = put(folder, "mara", stored)
    put(folder, "hostile", b"\xff" * 64)
    with pytest.raises(errors.ConfigError, match="2001 characters, expected at most 2000"):
        library.annotate("mara.safetensors", "x" * 2001)
    for strength in (2.5, -3, float("nan"), float("inf")):
        with pytest.raises(errors.ConfigError, match=r"strength must lie in -2\.\.2"):
            library.annotate("mara.safetensors", strength=strength)
    with pytest.raises(errors.FileFormatError, match="truncated or no safetensors"):
        library.annotate("hostile.safetensors", "notes")
    assert path.read_bytes() == stored


def test_notes_longer_than_the_listing_shows_are_never_cut(library: Any, folder: Path) -> None:
    path = folder / "mara.safetensors"
    adapter_file.write_identity(path, an_identity(notes="y" * 200_000))
    (entry,) = library.entries()
    assert (len(entry.notes), entry.notes_length) == (2000, 200_000)
    with pytest.raises(errors.ConfigError, match=r"have 200000 characters.*left as they are"):
        library.annotate("mara.safetensors", entry.notes, 0.5)
    library.annotate("mara.safetensors", strength=0.5)
    kept = adapter_file.read_identity(path).made_by
    assert (len(kept["notes"]), kept["strength"]) == (200_000, "0.5")


def test_half_a_character_is_refused_before_anything_is_written(library: Any, folder: Path, stored: bytes) -> None:
    path = put(folder, "mara", stored)
    with pytest.raises(errors.ConfigError, match="half of a character"):
        library.annotate("mara.safetensors", "\ud800")
    assert path.read_bytes() == stored


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right on Windows")
def test_a_link_in_a_circle_ends(library: Any, folder: Path, stored: bytes) -> None:
    put(folder, "mara", stored)
    (folder / "again").symlink_to(folder, target_is_directory=True)
    (folder / "dangling.safetensors").symlink_to(folder / "nothing")
    assert names(library) == ["mara.safetensors"]


def test_two_threads_on_one_library_lose_nothing(library: Any, folder: Path, stored: bytes) -> None:
    """One renames back and forth and annotates, others list and look: no error, and everybody is there at the end."""
    for name in ("anna", "bela", "carla"):
        put(folder, name, stored, picture=True)
    failures: list[BaseException] = []

    def watched(job: Callable[[], object]) -> None:
        try:
            for _ in range(15):
                job()
        except BaseException as error:
            failures.append(error)

    def move(name: str) -> None:
        library.rename(f"{name}.safetensors", f"{name} moved")
        library.annotate(f"{name} moved.safetensors", notes="moved")
        library.rename(f"{name} moved.safetensors", name)

    annotate = partial(library.annotate, "carla.safetensors", "here")
    jobs = [partial(move, "anna"), partial(move, "bela"), library.entries, annotate]
    threads = [threading.Thread(target=watched, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    entries = {entry.title: entry for entry in library.entries()}
    assert {title: entry.notes for title, entry in entries.items()} == {
        "anna": "moved",
        "bela": "moved",
        "carla": "here",
    }
    assert all(entry.preview and not entry.problem for entry in entries.values())
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".png"}
