"""Every reader meets hostile inputs, and either gives a sane value or raises one of our errors, in time and memory.

Quickly here, a few for each; `pytest tests/fuzz -m slow --inputs 50000` throws as many as one likes, in processes of
their own that end after 5 seconds of one input or beyond a gigabyte; `--first-seed 50000` goes on with others.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.fuzz.readers import READERS, THROUGH
from tests.fuzz.throwing import Wrong, good_content, throw

ROOT = Path(__file__).resolve().parents[2]
FEW = 16
"""inputs for each reader: about ten seconds' worth for all"""
READING = ("read_", "inspect_", "open_", "load_")


@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("ignore")  # what decoders say of damaged pictures is theirs
def test_hostile_inputs_end_in_a_sane_value_or_in_one_of_our_errors(name: str, tmp_path: Path) -> None:
    if READERS[name].ending == ".onnx":
        pytest.importorskip("onnxruntime")
    content, refused = good_content(READERS[name], tmp_path), 0
    few = max(3, round(FEW * READERS[name].share))
    for seed in range(few):
        try:
            refused += throw(name, content, seed, tmp_path)
        except Wrong as error:
            raise AssertionError(f"{name}, seed {seed}: {error}") from error
    assert refused >= few // 5 or READERS[name].is_tolerant, f"{refused} of {few} were refused"


@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("ignore")
def test_what_the_readers_are_thrown_at_with_was_good(name: str, tmp_path: Path) -> None:
    if READERS[name].ending == ".onnx":
        pytest.importorskip("onnxruntime")
    place = tmp_path / f"good{READERS[name].ending}"
    READERS[name].write(place)
    if name not in ("loading.load_base", "inspect.inspect_file"):
        READERS[name].read(place)


def test_every_reader_is_here() -> None:
    """Public functions that are called read_..., inspect_..., open_... or load_... and take a path or bytes."""
    known = {name.partition(" ")[0] for name in READERS} | set(THROUGH)
    for top in ("hyperdream_core", "nodes", "scripts"):
        for file in sorted((ROOT / top).rglob("*.py")):
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef) and node.name.startswith(READING) and _takes_a_file(node):
                    assert f"{file.stem}.{node.name}" in known, f"{file.stem}.{node.name} is not thrown at"
    assert set(THROUGH.values()) <= known


def _takes_a_file(function: ast.FunctionDef) -> bool:
    arguments = [*function.args.args, *function.args.kwonlyargs]
    return any("Path" in ast.unparse(one.annotation or ast.Constant("")) for one in arguments) or any(
        "bytes" in ast.unparse(one.annotation or ast.Constant("")) for one in arguments
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory by the system's own means")
@pytest.mark.parametrize("module", sorted({name.partition(".")[0] for name in READERS}))
def test_many_hostile_inputs_do_so_within_five_seconds_and_a_gigabyte(
    module: str, request: pytest.FixtureRequest
) -> None:
    inputs, first = (int(request.config.getoption(name)) for name in ("--inputs", "--first-seed"))
    each = inputs / sum(reader.share for reader in READERS.values())
    names = [name for name in READERS if name.startswith(f"{module}.")]
    jobs = [(name, first, -int(-each * READERS[name].share // 1)) for name in names]
    outcomes: dict[str, Counter[str]] = {name: Counter() for name in names}
    wrong: list[str] = []
    while jobs:
        command = [sys.executable, "-m", "tests.fuzz.throwing", json.dumps(jobs)]
        child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=36_000)
        lines = [json.loads(line) for line in child.stdout.splitlines() if line.startswith('{"name"')]
        for line in lines:
            outcome = line.get("outcome", "")
            outcomes[line["name"]][outcome if outcome in ("read", "refused", "") else "wrong"] += 1
            if outcome not in ("read", "refused", ""):
                wrong.append(f"{line['name']}, seed {line['seed']}: {outcome}")
        if child.returncode == 0:
            break
        assert lines, child.stderr[-2000:]
        name, seed = lines[-1]["name"], lines[-1]["seed"]
        outcomes[name]["ended"] += 1
        wrong.append(f"{name}, seed {seed}: ended by {-child.returncode} {child.stderr[-300:]}")
        [(_, start, count), *rest] = jobs[[job[0] for job in jobs].index(name) :]
        jobs = [(name, seed + 1, start + count - seed - 1), *rest]
    for name, counts in outcomes.items():
        print(f"{name}: {counts['read']} read, {counts['refused']} refused, {counts['wrong'] + counts['ended']} wrong")
    assert not wrong, f"{module}: {len(wrong)} wrong, such as:\n" + "\n".join(wrong[:20])
