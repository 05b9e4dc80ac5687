"""Commands that are ended at bad moments, by signals and by full disks: nothing is lost, and the next run goes on."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hyperdream_core.formats.container import read_tensors
from hyperdream_core.whole_file import is_part
from tests.kills import Commands, full_disk, killed_and_resumed

TINY = ("--base", "base", "--size", "32", "--device", "cpu")
POLISH = ("polish", "sofia.png", "--start", "sofia.safetensors", *TINY, "--steps", "8", "--batch", "2", "--rank", "2",
          "--caption", "none", "--save-every", "1", "--checkpoint", "checkpoint.safetensors",
          "--out", "out/mara.safetensors")  # fmt: skip
PERSONALIZE = ("personalize", "sofia.png", *TINY, "--predictor", "predictor.safetensors", "--prompt", "a [V] face",
               "--polish-steps", "4", "--polish-batch", "2", "--rank", "2", "--draw-steps", "2", "--caption", "none",
               "--name", "mara", "--out", "out")  # fmt: skip


@pytest.fixture
def folder(base_folder: Path, predictor: Path, picture: Path, identity: Path, tmp_path: Path) -> Path:
    """Everything that the commands read."""
    here = tmp_path / "work"
    here.mkdir()
    shutil.copytree(base_folder, here / "base")
    shutil.copy(predictor, here / "predictor.safetensors")
    shutil.copy(picture, here / "sofia.png")
    shutil.copy(identity, here / "sofia.safetensors")
    return here


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands() as running:
        yield running


def results(folder: Path) -> dict[str, bytes]:
    """What was made, but for the report, which has the seconds."""
    made = sorted(path for path in (folder / "out").glob("*") if path.suffix != ".json")
    return {path.name: path.read_bytes() for path in made}


def whole(folder: Path) -> None:
    """Every file with a result's name can be read."""
    for path in folder.rglob("*.safetensors"):
        if not is_part(path):
            read_tensors(path)


@pytest.mark.slow
@pytest.mark.parametrize("words", [POLISH, PERSONALIZE], ids=["polish", "personalize"])
def test_a_command_killed_at_random_moments_ends_with_the_bytes_of_an_undisturbed_one(
    commands: Commands, folder: Path, words: tuple[str, ...], pytestconfig: pytest.Config
) -> None:
    undisturbed = commands.run(words, folder)
    assert undisturbed.code == 0, undisturbed.said
    expected = results(folder)
    chance, kills = random.Random(16), 0
    while kills < 15:
        shutil.rmtree(folder / "out")
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)
        story = killed_and_resumed(commands, words, folder, undisturbed.seconds, chance, kills=3)
        kills += story.kills
        whole(folder)
        assert results(folder) == expected, story
        assert not [path for path in folder.rglob("*") if is_part(path)], "parts were left behind"
        assert not (folder / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("words", [POLISH, PERSONALIZE], ids=["polish", "personalize"])
def test_a_disk_that_fills_up_ends_in_one_sentence_with_earlier_results_as_they_were(
    run: Callable[..., Any], folder: Path, words: tuple[str, ...], at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    words = tuple({"8": "3", "4": "1"}.get(word, word) for word in words)
    assert run(*words).code == 0
    earlier = results(folder)
    with full_disk(monkeypatch, at) as refused:
        ran = run(*words)
    lines = [line for line in ran.error.splitlines() if line.startswith("hyperdream: ")]
    assert refused and ran.code == 1 and len(lines) == 1 and "No space left" in lines[0], ran
    after = results(folder)
    assert after == earlier and not [path for path in folder.rglob("*") if is_part(path)]
    assert run(*words).code == 0 and results(folder) == earlier


def test_a_full_disk_beside_a_free_one_loses_nothing(
    run: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    words = tuple({"4": "1"}.get(word, word) for word in PERSONALIZE)
    assert run(*words).code == 0
    expected = results(folder)
    shutil.rmtree(folder / "out")
    with full_disk(monkeypatch, 1, lambda path: path.parent.name == "out"):
        ran = run(*words)
    said = ran.error.splitlines()[-1]
    assert ran.code == 1 and "what could not be written there is in" in said
    rescue = Path(said.rpartition("there is in ")[2].partition(" (kept")[0])
    kept = {path.name: path.read_bytes() for path in [*rescue.iterdir(), *(folder / "out").iterdir()]}
    assert expected.items() <= kept.items() and "mara-report.json" in kept
