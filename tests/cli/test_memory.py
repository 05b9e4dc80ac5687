"""Polishing from the command line where memory is short."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

TINY = ("--size", "32", "--device", "cpu", "--caption", "none")


def test_too_little_memory_gives_way_in_one_sentence(
    run: Callable, picture: Path, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hyperdream_core.bases import get_base
    from hyperdream_core.pipelines.diffusers.loading import base_numbers
    from hyperdream_core.pipelines.polishing import room
    from hyperdream_core.pipelines.polishing.memory import Room, bytes_needed

    needed = bytes_needed(get_base("miniature"), 32, 1, Room(free=0, number_size=4, device="cpu"))
    # Before the base is loaded its weights are to find room as well.
    free = [1.1 * needed, 1.1 * needed + 4 * base_numbers(base_folder)]
    monkeypatch.setattr(room, "free_memory", lambda device: free.pop())
    out = tmp_path / "made.safetensors"
    ran = run("polish", picture, "--base", base_folder, "--out", out, *TINY, "--steps", "1", "--batch", "2")
    assert ran.code == 0 and free == []
    assert ran.error.count("goes on with 1 sample at once instead of 2 (same result)") == 1, ran.error


@pytest.mark.parametrize("command", [("polish",), ("personalize", "--prompt", "a [V] face")])
def test_what_fits_in_no_way_is_refused_before_the_base_is_loaded(
    refused: Callable,
    command: tuple[str, ...],
    picture: Path,
    base_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from hyperdream_core.pipelines.polishing import room

    monkeypatch.setattr(room, "free_memory", lambda device: 1e6)
    monkeypatch.setattr("hyperdream_core.pipelines.diffusers.loading.load_base", lambda *_: pytest.fail("loaded"))
    said = refused(*command[:1], picture, *command[1:], "--base", base_folder, "--out", tmp_path / "made", *TINY)
    assert "one sample at once, needs about" in said and "close other programs" in said


def test_saving_memory_can_be_asked_for_and_is_not_remarked(
    run: Callable, picture: Path, base_folder: Path, tmp_path: Path
) -> None:
    words = ("--steps", "1", "--batch", "1", "--memory", "save-memory")
    out = tmp_path / "made.safetensors"
    ran = run("polish", picture, "--base", base_folder, "--out", out, *TINY, *words)
    assert ran.code == 0 and out.exists() and "polishing as asked" not in ran.error, ran.error
