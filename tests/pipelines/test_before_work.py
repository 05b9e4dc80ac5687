from __future__ import annotations

import os
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from hyperdream_core.bases import get_base
from hyperdream_core.errors import ConfigError, OutputError, PromptError
from hyperdream_core.pipelines import before_work
from hyperdream_core.pipelines.before_work import (
    bytes_of_identity,
    check_folder,
    check_outputs,
    check_prompts,
    check_texts,
    check_words,
)
from hyperdream_core.pipelines.diffusers.diffusers_base import DiffusersBase


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    (tmp_path / "photo.png").write_bytes(b"the only one")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("kind", ["itself", "dotted", "link", "hard link", "through a linked folder", "in a folder"])
def test_an_output_that_is_an_input_by_whatever_name_is_refused(tmp_path: Path, photo: Path, kind: str) -> None:
    names = {"itself": photo, "dotted": tmp_path / "x" / ".." / "photo.png", "in a folder": photo}
    (tmp_path / "x").mkdir()
    out = names.get(kind, tmp_path / "out.png")
    if kind == "link":
        out.symlink_to(photo)
    elif kind == "hard link":
        os.link(photo, out)
    elif kind == "through a linked folder":
        (tmp_path / "again").symlink_to(tmp_path)
        out = tmp_path / "again" / "photo.png"
    with pytest.raises(OutputError, match=r"(is what is read|is a file of|is a link)"):
        check_outputs([out], [tmp_path if kind == "in a folder" else photo])
    assert photo.read_bytes() == b"the only one"


def test_an_output_that_is_an_input_under_a_name_in_other_letters_is_refused(
    photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a system where the case of letters does not count, both names give one file."""
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **how: stat(str(path).replace("PHOTO", "photo"), **how))
    monkeypatch.setattr(before_work, "check_place", lambda path: None)
    with pytest.raises(OutputError, match="is what is read here"):
        check_outputs([photo.with_name("PHOTO.png")], [photo])


def test_two_outputs_that_may_be_one_file_are_refused(tmp_path: Path) -> None:
    for first, second in (("a.png", "A.png"), ("é.png", "e\u0301.png"), ("a.png", "a.png")):
        with pytest.raises(OutputError, match="two results would be this one file"):
            check_outputs([tmp_path / first, tmp_path / second])


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "dangling link", "socket"])
def test_an_output_that_is_no_file_is_refused_and_stays(tmp_path: Path, kind: str) -> None:
    import socket

    out = tmp_path / "out"
    with socket.socket(socket.AF_UNIX) as bound:
        if kind == "fifo":
            os.mkfifo(out)
        elif kind == "folder":
            out.mkdir()
        elif kind == "dangling link":
            out.symlink_to(tmp_path / "nowhere")
        elif kind == "socket":
            bound.bind(str(out))
        else:
            out = Path(os.devnull)
        before = os.lstat(out)
        with pytest.raises(OutputError, match="which would be lost"):
            check_outputs([out])
        assert os.lstat(out).st_mode == before.st_mode


@pytest.mark.parametrize("name", ["x" * 256, "脸" * 90, "a\0b", "/", "..", "file/below.png", "x" * 300 + "/y.png"])
def test_a_place_where_nothing_can_be_is_refused_and_nothing_is_made(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError):
        check_outputs([tmp_path / name])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_disk_with_too_little_room_is_refused_with_both_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 0, 5_000_000))
    check_folder(tmp_path / "new", room=1_000_000)
    with pytest.raises(OutputError, match=r"has 5.0 MB free, but the results may take 12.0 MB"):
        check_folder(tmp_path / "new", room=10_000_000)
    assert not (tmp_path / "new").exists()
    # Some file systems do not tell.
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(0, 0, 0))
    check_folder(tmp_path, room=10_000_000)


def test_the_room_for_an_identity_is_no_less_than_it_takes() -> None:
    family = get_base("miniature")
    numbers = sum(2 * (layer.in_features + layer.out_features) for layer in family.layers("attention"))
    assert bytes_of_identity(family, "attention", 2) > 4 * numbers


@pytest.mark.parametrize("text", ["a \ud800 face", "caf\udce9", "a\0b", "x" * 5001])
def test_texts_that_no_file_can_hold_are_refused_by_their_setting(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^caption"):
        check_texts(prompt="a [V] face", caption=["smiling", text])


@pytest.mark.parametrize("word", ["", " ", "x" * 101, "s\nk", "\ud800"])
def test_words_that_cannot_call_anybody_are_refused(word: str) -> None:
    check_words("sks", "face")
    with pytest.raises(ConfigError, match="class_noun"):
        check_words("sks", word)
    with pytest.raises(ConfigError, match="identifier"):
        check_words(word, "face")


class Cutting:
    """A base whose encoder reads ten characters."""

    def cut_off(self, prompt: str) -> str:
        return prompt[10:]


def test_what_the_encoder_does_not_see_is_said_and_a_subject_that_falls_off_is_refused() -> None:
    assert check_prompts(Cutting(), ["a sks face"], "sks") == []
    (note,) = check_prompts(Cutting(), ["a sks face, sad"] * 2, "sks")
    assert "longer than the 77 tokens" in note and "', sad'" in note
    with pytest.raises(PromptError, match="'sks' is beyond the 77 tokens"):
        check_prompts(Cutting(), ["a very sad sks face"], "sks")
    assert len(check_prompts(Cutting(), ["a very sad face"])) == 1
    assert check_prompts(object(), ["a very sad sks face"], "sks") == []


def test_the_text_encoder_of_a_real_base_tells_what_it_leaves_out(make_base: Callable[[int], DiffusersBase]) -> None:
    base = make_base(0)
    assert check_prompts(base, ["a sks face" + ", sad" * 36], "sks") == []
    long = "a sks face" + ", sad" * 60
    left = base.cut_off(long)
    # 3 tokens of the subject and 36 times 2 of the rest fill the 75 between the start and the end.
    assert left == ", sad" * 24
    with pytest.raises(PromptError, match="'sks' is beyond"):
        check_prompts(base, ["sad, " * 60 + "a sks face"], "sks")
