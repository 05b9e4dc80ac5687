"""`hyperdream train hypernetwork`: from a corpus and a checkpoint to a predictor that the other commands use."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hyperdream_core.pipelines.corpora.collect import CollectConfig, collect
from hyperdream_core.pipelines.corpora.encode import encode_features, encode_latents
from hyperdream_core.pipelines.diffusers.loading import load_base
from hyperdream_core.pipelines.predictors.frozen_encoder import load_image_encoder
from hyperdream_core.pipelines.predictors.predictor import open_predictor
from hyperdream_core.pipelines.training import probes
from tests.pipelines.training.people import Noise

SMALL = (
    "--device", "cpu", "--down-dim", "5", "--up-dim", "7", "--width", "12", "--heads", "3", "--decoder-layers", "1",
    "--refine-steps", "2",
)  # fmt: skip
STEPS = ("--steps", "2", "--warmup", "1", "--batch", "2", "--pictures", "1", "--look-every", "0", "--grid-every", "0")


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small vision transformer as `transformers` saves it."""
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("encoder")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Dinov2Config(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
        Dinov2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(base_folder: Path, encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("people") / "corpus"
    base = load_base(base_folder)
    made = collect(Noise(), folder, CollectConfig(size=base.family.picture_size, held_out=0.4, licence="noise is free"))
    encode_latents(made, base)
    encode_features(made, load_image_encoder(encoder_folder), base.family)
    return folder


@pytest.fixture
def words(corpus: Path, base_folder: Path, tmp_path: Path) -> tuple[object, ...]:
    return (
        "train",
        "hypernetwork",
        "--corpus",
        corpus,
        "--base",
        base_folder,
        "--out",
        tmp_path / "own.safetensors",
        *SMALL,
    )


def test_a_predictor_is_trained_with_its_looks_and_predicts(
    run: Callable,
    words: tuple[object, ...],
    encoder_folder: Path,
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probes, "GRID_STEPS", 1)
    looks = (*STEPS[:-4], "--look-every", "2", "--grid-every", "2", "--image-encoder", encoder_folder)
    ran = run(*words, *looks, "--recompute", "--micro-batch", "1", "--supervision", "0", "--json")
    assert ran.code == 0, ran.error
    assert ran.json["image_encoder"] == encoder_folder.name and ran.json["licence"] == "noise is free"
    assert len(ran.json["probes"]) == 12 and "step 2: loss " in ran.error and "right at 0.95" in ran.error
    files = {path.name for path in (tmp_path / "own-training").iterdir()}
    assert files == {"checkpoint.safetensors", "log.csv", "curves.png", "grid-0000002.png"}
    frozen = load_image_encoder(encoder_folder).network.state_dict()
    for name, tensor in open_predictor(tmp_path / "own.safetensors").network.encoder.state_dict().items():
        torch.testing.assert_close(tensor, frozen[name].to(torch.float16).to(tensor.dtype), rtol=0, atol=0)
    predicted = tmp_path / "identity.safetensors"
    ran = run("predict", picture, "--predictor", tmp_path / "own.safetensors", "--out", predicted, "--device", "cpu")
    assert ran.code == 0 and predicted.is_file(), ran.error


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_processes_make_the_predictor_that_one_makes(
    run: Callable, words: tuple[object, ...], tmp_path: Path
) -> None:
    assert run(*words, *STEPS).code == 0
    one = open_predictor(tmp_path / "own.safetensors").network.state_dict()
    (tmp_path / "own.safetensors").unlink()
    shutil.rmtree(tmp_path / "own-training")
    ran = run(*words, *STEPS, "--processes", "2")
    assert ran.code == 0, ran.error
    two = open_predictor(tmp_path / "own.safetensors").network.state_dict()
    # To the rounding of half precision, in which it is stored.
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=2e-3, rtol=2e-3)


def test_the_plan_is_said_and_nothing_is_written(run: Callable, words: tuple[object, ...], tmp_path: Path) -> None:
    ran = run(*words, *STEPS, "--plan", "--people", "15000", "--processes", "8")
    assert ran.code == 0, ran.error
    assert "corpus of 15,000 people: pictures" in ran.out and "on 8 processes" in ran.out
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_trained_is_refused_in_a_sentence(
    refused: Callable, words: tuple[object, ...], encoder_folder: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(encoder_folder / "config.json", bare / "config.json")
    assert "has no model.safetensors" in refused(*words, *STEPS, "--image-encoder", bare)
    assert "no corpus" in refused(*words[:3], tmp_path, *words[4:], *STEPS)
    assert "0 of 2 shards of its identities are there" in refused(*words, *STEPS, "--supervision", "0.1")
    assert "precision fp16 needs a GPU" in refused(*words, *STEPS, "--precision", "fp16")
    assert "unknown tracker 'x'" in refused(*words, *STEPS, "--trackers", "x")
    assert "processes must be 1 or more" in refused(*words, *STEPS, "--processes", "0")
    assert not (tmp_path / "own.safetensors").exists()
