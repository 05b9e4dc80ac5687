"""A hundred command lines that cannot work: each is refused in one sentence, and the folder is as it was."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

FACE = "a [V] face"
NAMES = {
    "empty": "",
    "NUL": "a\0b",
    "root": "/",
    "here": ".",
    "above": "..",
    "too long": "x" * 300,
    "too long in bytes": "脸" * 100,
    "below a file": "sofia.png/x.safetensors",
    "device": os.devnull,
    "fifo": "fifo",
    "link": "link.png",
    "dangling link": "dangling",
    "folder": "folder",
    "the photograph": "sofia.png",
    "the photograph, linked hard": "hard.png",
    "the photograph, dotted": "folder/../sofia.png",
}
"""what may stand after --out; the last ones are what is read"""
TEXTS = {
    "half a character": "a [V] face \ud800",
    "another encoding": "a [V] face caf\udce9",
    "a NUL": "a [V] face\0",
    "nobody": "a face",
    "endless": "a [V] face" + ", sad" * 3000,
}
FILES = ("sofia.png", "gone.png", "text.txt", "folder", "fifo", os.devnull, "", "a\0b", "x" * 300, "caf\udce9.png", "~")
NUMBERS = (
    "-1",
    "0",
    "1.5",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "",
    "x",
    "9" * 30,
    "9" * 5000,
    "1000000000",
    "٣٤",
    "1_0_0_0_0_0_0_0_0",
)


def command_lines() -> dict[str, list[str]]:
    """Name -> words."""
    lines: dict[str, list[str]] = {}
    base = ["--base", "base", "--size", "32"]
    for what, out in NAMES.items():
        lines[f"predict --out {what}"] = ["predict", "sofia.png", "--predictor", "predictor.safetensors", "--out", out]
        lines[f"polish --checkpoint {what}"] = ["polish", "sofia.png", *base, "--steps", "1", "--checkpoint", out]
        lines[f"export --out {what}"] = ["export", "sofia.safetensors", "--preview", "sofia.png", "--out", out]
    for what in ("empty", "NUL", "device", "fifo", "dangling link", "too long", "the photograph"):
        lines[f"prepare --out {what}"] = ["prepare", "sofia.png", "--out", NAMES[what]]
        lines[f"draw --out {what}"] = ["draw", *base, "--prompt", "a face", "--out", NAMES[what]]
        lines[f"render --out {what}"] = ["miniature", "render", "--out", NAMES[what]]
    for name in (
        "",
        " ",
        "../x",
        "a/b",
        "x" * 300,
        "脸" * 80,
        "a\0b",
        "con",
        "NUL.x",
        "\ud800",
        "-",
        "a\nb",
        ".",
        "x.",
    ):
        words = ["personalize", "sofia.png", *base, "--prompt", FACE, "--out", "new", "--name", name]
        if name not in ("-",):
            lines[f"personalize --name {name[:10]!r}"] = words
    for what, text in TEXTS.items():
        lines[f"personalize --prompt {what}"] = ["personalize", "sofia.png", *base, "--prompt", text, "--out", "new"]
        lines[f"draw --prompt {what}"] = [
            "draw",
            "--identity",
            "sofia.safetensors",
            *base,
            "--prompt",
            text,
            "--out",
            "new",
        ]
    for name in FILES:
        out = ["--out", "new/x.safetensors"]
        if name != "sofia.png":
            lines[f"predict {name[:10]!r}"] = ["predict", name, "--predictor", "predictor.safetensors", *out]
        lines[f"predict --predictor {name[:10]!r}"] = ["predict", "sofia.png", "--predictor", name, *out]
    lines |= {
        "a result over the base": ["polish", "sofia.png", *base, "--out", "base/unet/config.json"],
        "a result over the start": [
            "polish",
            "sofia.png",
            "--start",
            "sofia.safetensors",
            *base,
            "--out",
            "sofia.safetensors",
        ],
        "a result over the predictor": [
            "predict",
            "sofia.png",
            "--predictor",
            "predictor.safetensors",
            "--out",
            "predictor.safetensors",
        ],
        "a LoRA over its identity": ["export", "sofia.safetensors", "--out", "sofia.safetensors"],
        "a checkpoint over the result": [
            "polish",
            "sofia.png",
            *base,
            "--out",
            "x.safetensors",
            "--checkpoint",
            "X.safetensors",
        ],
        "a checkpoint over a stranger's file": ["polish", "sofia.png", *base, "--checkpoint", "other.safetensors"],
        "a name whose identity is the start": [
            "personalize",
            "sofia.safetensors",
            *base,
            "--prompt",
            FACE,
            "--out",
            ".",
        ],
        "a name whose picture is the photograph": [
            "personalize",
            "x-01.png",
            *base,
            "--prompt",
            FACE,
            "--out",
            ".",
            "--name",
            "x",
        ],
        "a caption in another encoding": ["polish", "sofia.png", *base, "--caption", "caf\udce9", "--out", "new/x"],
        "a flag twice": ["predict", "sofia.png", "--out", "a.safetensors", "--out", "b.safetensors"],
        "an older flag and its name": [
            "personalize",
            "sofia.png",
            "--prompt",
            FACE,
            "--polish-steps",
            "1",
            "--finetune-steps",
            "2",
        ],
        "an unknown flag": ["predict", "sofia.png", "--frobnicate"],
        "an unknown command": ["\udce9"],
        "a schedule without end": ["draw", "--prompt", "x", "--guidance", "hybrid", "--schedule", "0-1:1," * 20000],
        "a schedule of curves without end": [
            "draw",
            "--prompt",
            "x",
            "--guidance",
            "hybrid",
            "--schedule",
            "0=1," * 20000,
        ],
        "a schedule of digits": ["draw", "--prompt", "x", "--guidance", "hybrid", "--schedule", "1" * 50000],
        "a word that is none": ["predict", "sofia.png", "--identifier", "\n", "--out", "new/x.safetensors"],
        "no class": ["predict", "sofia.png", "--class-noun", "", "--out", "new/x.safetensors"],
        "a million pictures": ["draw", "--prompt", "a face", "--count", "1000000", "--out", "new"],
        "a million people": ["miniature", "render", "--people", "1000000000", "--out", "new"],
        "a picture as large as a house": ["miniature", "render", "--size", "1000000", "--out", "new"],
        "a rank that fits no memory": ["polish", "sofia.png", *base, "--rank", "100000", "--out", "new/x.safetensors"],
        "a batch that fits no memory": [
            "polish",
            "sofia.png",
            *base,
            "--batch",
            "1000000",
            "--out",
            "new/x.safetensors",
        ],
        "steps for weeks": ["draw", *base, "--prompt", "a face", "--steps", "1000000", "--out", "new"],
        "a recipe that is none": ["miniature", "build", "--config", "text.txt", "--work", "new", "--out", "new"],
        "a recipe nested without end": [
            "miniature",
            "build",
            "--config",
            "nested.json",
            "--work",
            "new",
            "--out",
            "new",
        ],
        "weights that are none": ["evaluate", "--weights", "folder", "--out", "new"],
    }
    for value in NUMBERS:
        if value not in ("0", "٣٤"):
            lines[f"render --people {value[:10]!r}"] = ["miniature", "render", "--out", "new", f"--people={value}"]
        if value not in ("0", "1.5", "٣٤", "1_0_0_0_0_0_0_0_0", "-1", "1000000000"):
            lines[f"draw --strength {value[:10]!r}"] = [
                "draw",
                *base,
                "--prompt",
                "a face",
                "--out",
                "new",
                f"--strength={value}",
            ]
    return lines


@pytest.fixture(scope="module")
def folder(base_folder: Path, predictor: Path, tmp_path_factory: pytest.TempPathFactory, identity_of: Any) -> Path:
    """Everything that the command lines name."""
    import numpy as np
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    from hyperdream_core.formats.identity_file import write_identity

    here = tmp_path_factory.mktemp("hostile")
    pixels = np.random.RandomState(0).randint(0, 255, (48, 40, 3), dtype=np.uint8)
    for name in ("sofia.png", "x-01.png"):
        Image.fromarray(pixels).save(here / name)
    os.link(here / "sofia.png", here / "hard.png")
    write_identity(here / "sofia.safetensors", identity_of("miniature"))
    shutil.copytree(base_folder, here / "base")
    shutil.copy(predictor, here / "predictor.safetensors")
    save_file({"one": torch.ones(1)}, here / "other.safetensors")
    (here / "folder").mkdir()
    (here / "text.txt").write_text("not a picture")
    (here / "nested.json").write_text("[" * 100_000)
    os.mkfifo(here / "fifo")
    (here / "link.png").symlink_to("sofia.png")
    (here / "dangling").symlink_to("nowhere")
    return here


def snapshot(folder: Path) -> dict[str, str]:
    """Every name below a folder, with what it is and holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        content = f"{state.st_mode} {state.st_size} {state.st_ino}"
        if stat.S_ISREG(state.st_mode):
            # The weights of the base take too long to be read a hundred times.
            large = state.st_size > 200_000
            content += str(state.st_mtime_ns) if large else hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder))] = content
    return found


def refused(run: Callable[..., Any], folder: Path, before: dict[str, str], words: Sequence[str]) -> str:
    """Run a command line that must be refused; what it said, in one line."""
    ran = run(*words)
    shown = [word[:60] for word in words]
    assert ran.code in (1, 2) and ran.out == "", (shown, ran)
    lines = [line for line in ran.error.splitlines() if line.startswith("hyperdream: ")]
    assert len(lines) == 1 and lines[0].isprintable() and "Traceback" not in ran.error, (shown, ran.error[-2000:])
    assert snapshot(folder) == before, shown
    return lines[0]


@pytest.fixture(scope="module")
def before(folder: Path) -> dict[str, str]:
    return snapshot(folder)


LINES = command_lines()


@pytest.mark.parametrize("name", LINES)
def test_a_command_line_that_cannot_work_is_refused_in_one_sentence_and_changes_nothing(
    run: Callable[..., Any], folder: Path, before: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    refused(run, folder, before, LINES[name])


def test_there_are_a_hundred_of_them() -> None:
    assert len(LINES) >= 100


PIECES = (
    *FILES, *NUMBERS, "dangling", "base", "sofia.safetensors", "other.safetensors", "predictor.safetensors",
    "nested.json", "/", ".", "..", "\ud800", "--", "-", "--json", "--out", "--prompt", "--size", "--steps", "--seed",
    "--name", "--base", "--start", "--identity", "--checkpoint", "--detector", "--face", "--schedule", "--guidance",
    "--branch-weights", "--active", "--weights", "--people", "--config", "--caption", "--predictor", "auto", "none",
    "miniature", "hybrid", "weights", "cascade", "cpu", "meta", "cuda:9", "abacus", FACE, "a face", " ", "\n",
)  # fmt: skip
"""what the words of a random command line are taken from"""
COMMANDS = ("personalize", "prepare", "predict", "polish", "draw", "export", "inspect", "miniature", "finetune")


@pytest.mark.slow
def test_random_command_lines_never_end_in_a_traceback_and_never_change_what_was_there(
    run: Callable[..., Any], folder: Path, before: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Those that happen to work may make something new; nothing that was there changes."""
    chance, refusals = random.Random(16), 0
    for number in range(500):
        here = tmp_path / str(number)
        shutil.copytree(folder, here, symlinks=True, ignore=lambda *_: ["fifo", "base"])
        os.mkfifo(here / "fifo")
        (here / "base").symlink_to(folder / "base")
        monkeypatch.chdir(here)
        old = snapshot(here)
        # One step of the smallest size, where a line should work after all.
        words = [chance.choice(COMMANDS), *chance.choices(PIECES, k=chance.randint(0, 6))]
        ran = run(*words)
        assert ran.code in (0, 1, 2, 130) and "Traceback" not in ran.error, (number, words, ran.error[-500:])
        refusals += ran.code != 0
        new = snapshot(here)
        assert {name: new.get(name) for name in old} == old, (number, words)
        shutil.rmtree(here)
    assert refusals > 400 and snapshot(folder) == before
