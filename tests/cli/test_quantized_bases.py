"""`--quantize`: the commands on a base in 8 or 4 bits, and the base afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hyperdream_core.cli.base_flags import BaseChoice
from hyperdream_core.cli.console import Console
from hyperdream_core.formats.identity_file import read_identity

TINY = ("--size", "32", "--device", "cpu")


@pytest.mark.parametrize("kind", ["int4", pytest.param("nf4", marks=pytest.mark.slow)])
def test_an_identity_is_polished_and_drawn_on_a_quantised_base(
    run: Callable, base_folder: Path, picture: Path, tmp_path: Path, kind: str
) -> None:
    polished, base = tmp_path / "polished.safetensors", ("--base", base_folder, "--quantize", kind)
    steps = (
        "--steps",
        "2",
        "--rank",
        "2",
        "--batch",
        "1",
        "--crops",
        "0",
        "--caption",
        "none",
        "--learning-rate",
        "0.1",
    )
    ran = run("polish", picture, *base, "--out", polished, *TINY, *steps)
    assert ran.code == 0, ran.error
    assert f"layers of the UNet are in {kind}, 4." in ran.error and "MB instead of" in ran.error
    assert read_identity(polished).rank == 2
    drawn = {}
    for name, words in {"with": ("--identity", polished), "without": (), "full": ("--identity", polished)}.items():
        out, on = tmp_path / name, base[:2] if name == "full" else base
        ran = run("draw", "--prompt", "a [V] face", *words, *on, *TINY, "--steps", "2", "--out", out)
        assert ran.code == 0, ran.error
        drawn[name] = next(out.glob("*.png")).read_bytes()
    assert len(set(drawn.values())) == 3


def test_personalize_takes_a_quantised_base(
    run: Callable, base_folder: Path, predictor: Path, picture: Path, tmp_path: Path
) -> None:
    where = ("--base", base_folder, "--quantize", "int8", "--predictor", predictor, "--out", tmp_path / "out")
    polish = ("--polish-steps", "1", "--rank", "1", "--polish-batch", "1", "--crops", "0", "--caption", "none")
    draw = ("--draw-steps", "1", "--guidance-scale", "1", "--prompt", "a [V] face")
    ran = run("personalize", picture, *where, *TINY, *polish, *draw)
    assert ran.code == 0, ran.error
    assert "are in int8, 8." in ran.error
    assert (tmp_path / "out" / "sofia.safetensors").exists()


def test_a_quantised_base_is_still_of_its_checkpoint(base_folder: Path) -> None:
    """So that a predictor trained on that is not called another checkpoint's."""
    full = BaseChoice(source=str(base_folder), device="cpu", dtype="fp32")
    bases = [replace(full, quantize=kind).load(Console(as_json=True)) for kind in (None, "int8")]
    assert len({base.fingerprint() for base in bases}) == 1
    assert len({str(base.unet.state_dict().keys()) for base in bases}) == 2


def test_bits_that_there_are_not_are_refused_by_the_flag(run: Callable, base_folder: Path, picture: Path) -> None:
    ran = run("polish", picture, "--base", base_folder, "--quantize", "int2")
    assert ran.code == 2 and "'int2'" in ran.error
