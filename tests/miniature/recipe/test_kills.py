"""`miniature build`, killed again and again at moments of chance: it goes on each time, to the same bytes."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperdream_core.whole_file import is_part
from tests.kills import SIGNALS, Commands

WORDS = ("miniature", "build", "--quick", "--work", "work", "--out", "out")
KILLS = 24


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands() as running:
        yield running


def contents(folder: Path) -> dict[str, str]:
    """Of all files but what says how long it took."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    facts, listed = json.loads(files.pop("out/recipe.json")), json.loads(files.pop("out/manifest.json"))
    del files["work/seconds.json"], facts["seconds"], listed["recipe.json"]
    card = files.pop("out/MODEL_CARD.md").partition(b"## Figures")[0]
    files |= {"facts": json.dumps(facts).encode(), "manifest": json.dumps(listed).encode(), "card": card}
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_build_that_is_killed_again_and_again_ends_with_the_same_bytes(
    processes: int, commands: Commands, tmp_path: Path
) -> None:
    words = (*WORDS, "--processes", processes)
    for name in ("undisturbed", "killed"):
        (tmp_path / name).mkdir()
    undisturbed = commands.run(words, tmp_path / "undisturbed")
    assert undisturbed.code == 0, undisturbed.said
    chance, ends = random.Random(16 + processes), []
    for _ in range(KILLS):
        how, after = chance.choice(SIGNALS), chance.uniform(0, undisturbed.seconds / 4)
        ended = commands.run(words, tmp_path / "killed", after, how)
        assert "Traceback" not in ended.said and ended.code in (0, 130, -how), ended.said
        ends.append(ended.code)
        if not ended.code:
            break
    last = commands.run(words, tmp_path / "killed")
    assert last.code == 0, last.said
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")
    assert not [path for path in tmp_path.rglob("*") if is_part(path)]
    print(f"{len([code for code in ends if code])} kills")
