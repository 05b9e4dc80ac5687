"""The public face of the library: its names, what they load, and the lines in its docstring."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import hyperdream_core
from hyperdream_core import verbs
from hyperdream_core.errors import ConfigError, PromptError
from hyperdream_core.faces.likeness import Likeness
from hyperdream_core.formats.identity_file import read_identity
from hyperdream_core.miniature.trial.judges import bundled_recognizer
from hyperdream_core.pictures.files import read_image
from hyperdream_core.pipelines.polishing import polish_config as polishing

ROOT = Path(__file__).resolve().parents[1]
PORTRAIT = ROOT / "examples" / "portrait.png"


def shown_lines() -> str:
    """The program in the package's docstring."""
    text = hyperdream_core.__doc__ or ""
    return textwrap.dedent("\n".join(line for line in text.splitlines() if line.startswith("    ")))


def test_every_public_name_is_there_and_no_other_is_promised() -> None:
    assert hyperdream_core.__all__ == verbs.__all__
    assert all(getattr(hyperdream_core, name).__name__ == name for name in hyperdream_core.__all__)
    assert set(hyperdream_core.__all__) <= set(dir(hyperdream_core))
    with pytest.raises(AttributeError, match="has no attribute 'juggle'"):
        hyperdream_core.juggle  # noqa: B018


def test_type_checkers_are_told_of_the_same_names() -> None:
    tree = ast.parse(Path(hyperdream_core.__file__).read_text(encoding="utf-8"))
    blocks = [node for block in tree.body if isinstance(block, ast.If) for node in block.body]
    told = [alias.name for node in blocks if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert told == hyperdream_core.__all__


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, hyperdream_core; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    assert not {"torch", "diffusers", "transformers", "numpy", "PIL"} & loaded
    assert {name for name in loaded if name.startswith("hyperdream_core")} == {"hyperdream_core"}


def test_the_lines_in_the_docstring_go_from_a_picture_to_an_identity_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "portrait.png").write_bytes(PORTRAIT.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(polishing, "STEPS_AFTER_PREDICTION", 2)
    lines = shown_lines()
    assert len([line for line in lines.splitlines() if line.strip()]) == 6
    made: dict[str, object] = {}
    exec(lines, made)
    identity = read_identity(tmp_path / "identity.safetensors")
    assert identity.family == "miniature" and identity.rank == made["identity"].rank  # type: ignore[attr-defined]
    drawn = read_image(tmp_path / "smiling.png")
    judge = bundled_recognizer()
    assert drawn.shape == (3, 64, 64) and judge is not None
    assert float(Likeness(made["faces"], judge)(drawn[None])) > judge.same_person  # type: ignore[arg-type]


def test_a_prompt_must_name_the_subject(tmp_path: Path) -> None:
    base, predictor = hyperdream_core.load_base("miniature"), hyperdream_core.open_predictor("miniature")
    identity = verbs.predict(predictor, verbs.prepare([PORTRAIT], base))
    with pytest.raises(PromptError, match="does not name the subject"):
        verbs.draw(base, "a face, sad", identity)
    assert verbs.export(identity, tmp_path / "lora.safetensors").stat().st_size > 1000


def test_faces_are_looked_for_unless_the_base_takes_whole_pictures() -> None:
    base = hyperdream_core.load_base("miniature")
    assert verbs.prepare(PORTRAIT, base).prepared.detector.startswith("no detector")
    config = hyperdream_core.PrepareConfig(detector="cascade", on_no_face="whole-picture")
    assert verbs.prepare(str(PORTRAIT), base, config).prepared.detector == "scikit-image's frontal cascade"


def test_pictures_are_saved_one_by_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds one picture, got 2; save them one by one"):
        verbs.save(torch.zeros(2, 3, 8, 8), tmp_path / "two.png")
    assert read_image(verbs.save(torch.ones(3, 32, 32), tmp_path / "one.png")).min() == 1
