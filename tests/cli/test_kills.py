"""Commands that are ended at bad moments, by signals and by full disks: nothing is lost, and the next run goes on."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hyperdream_core.formats.container import payload_digest, read_tensors
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


def results(folder: Path) -> dict[str, str]:
    """What was made, but for the report and the seconds that a prediction took: a digest of each file's content."""
    made = {}
    for path in sorted((folder / "out").glob("*")):
        if path.suffix == ".safetensors":
            made[path.name] = payload_digest(read_tensors(path)[1])
        elif path.suffix == ".png":
            made[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return made


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
        print(f"{words[0]}: {kills} kills so far; this time {[end.code for end in story.ends]}", flush=True)


def test_a_disk_that_fills_up_while_polishing_ends_in_one_sentence_and_the_same_command_goes_on(
    run: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    words = tuple({"8": "3"}.get(word, word) for word in POLISH)
    assert run(*words).code == 0
    earlier = results(folder)
    # Two checkpoints and the result are written; the third run goes on from the first checkpoint.
    for at, has_checkpoint, met in ((0, False, "checkpoint"), (1, True, "checkpoint"), (1, True, "mara")):
        with full_disk(monkeypatch, at) as refused:
            said = refused_for_lack_of_room(run, words)
        assert refused and results(folder) == earlier
        assert (folder / "checkpoint.safetensors").exists() == has_checkpoint
        assert f"{met}.safetensors{' could be written neither' if met == 'mara' else ': cannot be written'}" in said
        assert not [path for path in folder.rglob("*") if is_part(path)]
    assert run(*words).code == 0 and results(folder) == earlier and not (folder / "checkpoint.safetensors").exists()


def refused_for_lack_of_room(run: Callable[..., Any], words: tuple[str, ...]) -> str:
    """Run a command whose disk is full; its one sentence."""
    ran = run(*words)
    lines = [line for line in ran.error.splitlines() if line.startswith("hyperdream: ")]
    assert ran.code == 1 and len(lines) == 1 and "No space left" in lines[0], ran
    return lines[0]


@pytest.mark.parametrize("at", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 3])
def test_a_disk_that_fills_up_loses_no_earlier_result_and_says_what_it_could_not_keep(
    run: Callable[..., Any], folder: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    words = tuple({"4": "1"}.get(word, word) for word in PERSONALIZE)
    (folder / "out").mkdir()
    names = ("mara.safetensors", "mara-lora.safetensors", "mara-01.png", "mara-grid.png", "mara-report.json")
    for name in names:
        (folder / "out" / name).write_bytes(b"earlier")
    with full_disk(monkeypatch, at) as refused:
        said = refused_for_lack_of_room(run, words)
    assert refused and all(name in said for name in names[at:])
    kept = {name: (folder / "out" / name).read_bytes() == b"earlier" for name in names}
    assert list(kept.values()) == [False] * at + [True] * (5 - at)
    assert sorted(path.name for path in (folder / "out").iterdir()) == sorted(names)


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
    assert {"mara-01.png", "mara-grid.png", "mara-report.json"} <= {path.name for path in rescue.iterdir()}
    shutil.copytree(rescue, folder / "out", dirs_exist_ok=True)
    assert results(folder) == expected
