"""Commands on a real disk of a few megabytes that is full, or fills up while they work."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from hyperdream_core.formats.container import read_tensors
from hyperdream_core.pictures.files import read_picture
from hyperdream_core.whole_file import is_part

TINY = ("--base", "base", "--size", "32", "--device", "cpu")
COMMANDS: dict[str, tuple[str, ...]] = {
    "prepare": ("prepare", "sofia.png", "--detector", "already-cropped", "--out", "disk/faces"),
    "predict": ("predict", "sofia.png", "--predictor", "predictor.safetensors",
                "--out", "disk/mara.safetensors"),
    "polish": ("polish", "sofia.png", "--start", "sofia.safetensors", *TINY, "--steps", "4", "--batch", "2", "--rank",
               "2", "--caption", "none", "--save-every", "1", "--checkpoint", "disk/checkpoint.safetensors",
               "--out", "disk/mara.safetensors"),
    "draw": ("draw", "--identity", "sofia.safetensors", *TINY, "--prompt", "a [V] face", "--count", "3", "--steps", "2",
             "--out", "disk/pictures"),
    "export": ("export", "sofia.safetensors", "--out", "disk/lora.safetensors"),
    "personalize": ("personalize", "sofia.png", *TINY, "--predictor", "predictor.safetensors", "--prompt", "a [V] face",
                    "--polish-steps", "2", "--polish-batch", "2", "--rank", "2", "--draw-steps", "2", "--caption",
                    "none", "--name", "mara", "--out", "disk/out"),
}  # fmt: skip
TRIES = 4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="a small disk is made by Linux' own means"),
]


@pytest.fixture
def folder(base_folder: Path, predictor: Path, picture: Path, identity: Path, tmp_path: Path) -> Iterator[Path]:
    """Everything that the commands read, and a disk of 12 MB of its own."""
    here = tmp_path / "work"
    (here / "disk").mkdir(parents=True)
    (here / "base").symlink_to(base_folder)
    shutil.copy(predictor, here / "predictor.safetensors")
    shutil.copy(picture, here / "sofia.png")
    shutil.copy(identity, here / "sofia.safetensors")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", here / "disk"], capture_output=True)
    if mounted.returncode:
        pytest.skip("only the system's keeper may mount a disk")
    try:
        yield here
    finally:
        os.chdir("/")
        subprocess.run(["umount", "-l", here / "disk"], check=True)


def fill(disk: Path, left: int) -> None:
    """Fill the disk but for so many bytes."""
    free = shutil.disk_usage(disk).free - left
    with (disk / "ballast").open("ab") as file, suppress(OSError):
        file.write(bytes(max(0, free)))


@contextmanager
def filling(disk: Path, after: float, left: int) -> Iterator[None]:
    """A disk that is filled after so many seconds, once and again, while a command runs."""
    ends = threading.Event()

    def others() -> None:
        ends.wait(after)
        while not ends.is_set():
            with suppress(OSError):
                fill(disk, left)
            time.sleep(0.002)

    thread = threading.Thread(target=others)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()
        (disk / "ballast").unlink(missing_ok=True)


def found(disk: Path) -> dict[str, bytes]:
    """What lies on the disk, each file of which can be read, and no part of any."""
    files = {str(path.relative_to(disk)): path for path in disk.rglob("*") if path.is_file() and path.name != "ballast"}
    for path in files.values():
        assert not is_part(path), path
        if path.suffix == ".safetensors":
            read_tensors(path)
        elif path.suffix == ".png":
            read_picture(path)
    return {name: path.read_bytes() for name, path in files.items()}


def refused(ran: Any) -> str:
    """The one sentence of a command that could not write."""
    said = [line for line in ran.error.splitlines() if line.startswith("hyperdream: ")]
    assert ran.code == 1 and len(said) == 1 and "Traceback" not in ran.error, ran
    return said[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_on_a_full_disk_a_command_is_refused_at_once_and_what_was_there_stays(
    name: str, run: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert run(*COMMANDS[name]).code == 0
    earlier = found(folder / "disk")
    for left in (0, 4096, 40_960):
        fill(folder / "disk", left)
        said = refused(run(*COMMANDS[name]))
        assert "disk" in said and ("free some space" in said or "No space left" in said), said
        (folder / "disk" / "ballast").unlink()
        assert found(folder / "disk") == earlier


@pytest.mark.parametrize("name", COMMANDS)
def test_on_a_disk_that_fills_up_meanwhile_nothing_is_half_written_and_the_same_command_goes_on(
    name: str, run: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    disk, chance, refusals = folder / "disk", random.Random(name), 0
    run(*COMMANDS[name])  # what is imported on use
    began = time.monotonic()
    assert run(*COMMANDS[name]).code == 0
    seconds, expected = time.monotonic() - began, set(found(disk))
    for _ in range(TRIES):
        earlier = found(disk)
        with filling(disk, chance.uniform(0, seconds), chance.choice((0, 4096, 20_480, 102_400))):
            ran = run(*COMMANDS[name])
        if ran.code:
            refusals += 1
            refused(ran)
        after = found(disk)
        assert set(earlier) <= set(after) | {"checkpoint.safetensors"}, ran.error
    assert run(*COMMANDS[name]).code == 0 and set(found(disk)) == expected
    print(f"{name}: {refusals} of {TRIES} refused")
