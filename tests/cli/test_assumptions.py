"""What a base does not say of itself: assumed aloud, in what people and in what machines read; or asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

SMALL = ("--size", "32", "--device", "cpu")
POLISH = ("--rank", "1", "--crops", "0", "--caption", "none")


@pytest.fixture
def silent(base_folder: Path, tmp_path: Path) -> Path:
    """A base that does not say what it predicts."""
    shutil.copytree(base_folder, tmp_path / "silent", copy_function=lambda one, other: Path(other).symlink_to(one))
    file = tmp_path / "silent" / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    del config["prediction_type"]
    file.unlink()
    file.write_text(json.dumps(config))
    return tmp_path / "silent"


@pytest.mark.parametrize(
    "words",
    [
        ("draw", "--prompt", "a face", "--steps", "1"),
        ("polish", "PICTURE", "--steps", "1", "--batch", "1", *POLISH),
        ("personalize", "PICTURE", "--predictor", "none", "--prompt", "a [V] face", "--polish-steps", "1",
         "--polish-batch", "1", "--draw-steps", "1", *POLISH),
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_what_was_assumed_of_a_base_is_said_once_and_reported(
    run: Callable, words: tuple[str, ...], silent: Path, picture: Path, tmp_path: Path
) -> None:
    out = tmp_path / ("out.safetensors" if words[0] == "polish" else "out")
    words = tuple(str(picture) if word == "PICTURE" else word for word in words)
    ran = run(*words, *SMALL, "--base", silent, "--out", out, "--json")
    assert ran.code == 0, ran.error
    sentence = "scheduler_config.json does not say what the UNet predicts; epsilon is assumed"
    assert [one.startswith(sentence) for one in ran.json["assumptions"]] == [True]
    assert ran.error.count(sentence) == 1
    if words[0] == "draw":
        ran = run(*words, *SMALL, "--base", silent, "--out", out, "--json", "--prediction-type", "v_prediction")
        assert ran.code == 0 and ran.json["assumptions"] == [] and "assumed" not in ran.error


def test_an_inpainting_base_is_refused_by_every_command_before_the_work(
    refused: Callable, base_folder: Path, picture: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    base = tmp_path / "inpainting"
    shutil.copytree(base_folder, base)
    file = base / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.weight"] = torch.cat([tensors["conv_in.weight"]] * 2, 1).contiguous()
    save_file(tensors, file)
    commands = (("draw", "--prompt", "a face"), ("polish", picture), ("personalize", picture, "--prompt", "a [V] face"))
    for words in commands:
        said = refused(*words, *SMALL, "--base", base, "--out", tmp_path / "out" / "one.safetensors")
        assert "takes 64 channels, but 32 are expected. It is an inpainting" in said
        assert said.rstrip(".").endswith("use the ordinary checkpoint")
