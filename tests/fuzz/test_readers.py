"""Every reader meets hostile inputs, and either gives a sane value or raises one of our errors, in time and memory.

Quickly here, a few for each; `pytest tests/fuzz -m slow --inputs 50000` throws as many as one likes, each reader in a
process of its own that ends after 5 seconds of one input or beyond a gigabyte.
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
    for seed in range(FEW):
        try:
            refused += throw(name, content, seed, tmp_path)
        except Wrong as error:
            raise AssertionError(f"{name}, seed {seed}: {error}") from error
    assert refused > FEW // 5 or READERS[name].is_tolerant, f"{refused} of {FEW} were refused"


@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("ignore")
def test_what_the_readers_are_thrown_at_with_was_good(name: str, tmp_path: Path) -> None:
    if READERS[name].ending == ".onnx":
        pytest.importorskip("onnxruntime")
    place = tmp_path / f"good{READERS[name].ending}"
    READERS[name].write(place)
    if not name.startswith(("loading.load_base", "inspect.inspect_file")):
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
@pytest.mark.parametrize("name", READERS)
def test_many_hostile_inputs_do_so_within_five_seconds_and_a_gigabyte(
    name: str, request: pytest.FixtureRequest
) -> None:
    count = -(-int(request.config.getoption("--inputs")) // len(READERS))
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    seed = 0
    while seed < count:
        command = [sys.executable, "-m", "tests.fuzz.throwing", name, str(seed), str(count - seed)]
        child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600)
        lines = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]
        for line in lines:
            outcome = line.get("outcome", "")
            outcomes[outcome if outcome in ("read", "refused", "") else "wrong"] += 1
            if outcome not in ("read", "refused", ""):
                wrong.append(f"seed {line['seed']}: {outcome}")
        if child.returncode == 0:
            break
        assert lines, child.stderr[-2000:]
        wrong.append(f"seed {lines[-1]['seed']}: ended by {-child.returncode} {child.stderr[-300:]}")
        outcomes["ended"] += 1
        seed = lines[-1]["seed"] + 1
    print(f"{name}: {outcomes['read']} read, {outcomes['refused']} refused, {len(wrong)} wrong")
    assert not wrong, f"{name}: {len(wrong)} wrong, such as:\n" + "\n".join(wrong[:10])
