"""A predictor trained on a corpus: what is refused, what is kept, and that it is one that every host loads."""

from __future__ import annotations

import csv
import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hyperdream_core.errors import BaseMismatchError, ConfigError, MissingDependencyError, OutputError
from hyperdream_core.models.hypernetwork import HypernetworkConfig
from hyperdream_core.pipelines.corpora.collect import CollectConfig, collect
from hyperdream_core.pipelines.corpora.corpus import Corpus
from hyperdream_core.pipelines.corpora.encode import encode_latents
from hyperdream_core.pipelines.diffusers.diffusers_base import DiffusersBase
from hyperdream_core.pipelines.predictors.predictor import open_predictor
from hyperdream_core.pipelines.training.plan import measure
from hyperdream_core.pipelines.training.train_predictor import (
    PredictorJob,
    PredictorTraining,
    save_predictor,
    train_predictor,
)
from tests.pipelines.training.people import Noise

ENCODER = {"kind": "conv", "channels": [8, 8, 8, 8], "blocks": [1, 1, 1], "width": 6, "image_size": 32}
NETWORK = HypernetworkConfig(
    family="miniature", down_dim=5, up_dim=7, width=12, heads=3, decoder_layers=1, refine_steps=2, image_encoder=ENCODER
)
CONFIG = PredictorTraining(
    steps=4, warmup=1, learning_rate=0.01, batch=2, pictures=1, save_every=2, look_every=2, grid_every=0, probed=2
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, base: DiffusersBase) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    config = CollectConfig(size=base.family.picture_size, held_out=0.4, licence="noise is free")
    made = collect(Noise(), folder, config)
    encode_latents(made, base)
    assert len(made.held_out) >= 2 and len(made.training) >= 2
    return made


@pytest.fixture
def job(corpus: Corpus, base: DiffusersBase, tmp_path: Path) -> PredictorJob:
    return PredictorJob(
        base=base, base_name="tiny", corpus=corpus, network=NETWORK, config=CONFIG, work=tmp_path / "work"
    )


def test_the_result_is_one_file_that_every_host_loads_and_its_card(job: PredictorJob, tmp_path: Path) -> None:
    network, facts = train_predictor(job)
    save_predictor(tmp_path / "predictor.safetensors", job, network, facts)
    predictor = open_predictor(tmp_path / "predictor.safetensors")
    assert predictor.fingerprint == job.base.fingerprint() and predictor.family == "miniature"
    # Without an image encoder of its own a small one is trained along.
    before, after = job.new_network().encoder.state_dict(), network.encoder.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    card = predictor.training
    assert (card["base"], card["steps"], card["licence"]) == ("tiny", 4, "noise is free")
    assert card["people"] == len(job.corpus.training) and card["sources"] == [{"kind": "noise"}]
    assert set(card["probes"]) == {
        f"{name} at {level}" for name in ("right", "wrong", "mean", "base") for level in ("0.95", "0.8", "0.5")
    }
    table = list(csv.DictReader((job.work / "log.csv").read_text().splitlines()))
    assert [row["step"] for row in table] == ["1", "2", "3", "4"]
    assert float(table[-1]["right at 0.95"]) == pytest.approx(card["probes"]["right at 0.95"], rel=1e-4)
    assert (job.work / "curves.png").is_file()


def test_a_stopped_training_goes_on_to_the_same_file(job: PredictorJob, tmp_path: Path) -> None:
    def stop(step: int, steps: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_predictor(job, stop)
    at_once = replace(job, work=tmp_path / "at-once")
    for name, one in (("stopped", job), ("at-once", at_once)):
        save_predictor(tmp_path / f"{name}.safetensors", one, *train_predictor(one))
    assert (tmp_path / "stopped.safetensors").read_bytes() == (tmp_path / "at-once.safetensors").read_bytes()
    # Once more: nothing is left to do, and the card is the same.
    save_predictor(tmp_path / "again.safetensors", job, *train_predictor(job))
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "at-once.safetensors").read_bytes()


def test_a_full_disk_keeps_the_last_checkpoint(job: PredictorJob, monkeypatch: pytest.MonkeyPatch) -> None:
    from hyperdream_core import whole_file

    flush = whole_file._flush

    def full(path: Path) -> None:
        if "log" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(path)

    with monkeypatch.context() as patch:
        patch.setattr(whole_file, "_flush", full)
        with pytest.raises(OutputError, match=r"log\.csv.*No space left on device"):
            train_predictor(job)
    seen: list[int] = []
    train_predictor(job, lambda step, steps: seen.append(step))
    assert seen == [2, 3], "both steps before the full disk are kept"


def test_numbers_that_are_none_end_the_training_in_a_sentence(
    job: PredictorJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, calls = Corpus.take, []

    def broken(self: Corpus, name: str, *rows: torch.Tensor) -> torch.Tensor:
        found = take(self, name, *rows)
        calls.append(name)
        return found * float("nan") if name == "latents" and calls.count("latents") > 2 else found

    quiet = replace(job, config=replace(CONFIG, look_every=0))
    with monkeypatch.context() as patch:
        patch.setattr(Corpus, "take", broken)
        with pytest.raises(ConfigError, match="training diverged at step 2: its loss or gradient is not finite"):
            train_predictor(quiet)
    assert quiet.checkpoint.is_file()
    train_predictor(quiet)


def test_what_cannot_be_trained_is_refused_before_the_first_step(
    job: PredictorJob, make_base: Callable[[int], DiffusersBase]
) -> None:
    with pytest.raises(BaseMismatchError, match="its latents were made by another base, fingerprint"):
        train_predictor(replace(job, base=make_base(5)))
    with pytest.raises(ConfigError, match="0 of 2 shards of its identities are there"):
        train_predictor(replace(job, config=replace(CONFIG, supervision=0.1)))
    with pytest.raises(BaseMismatchError, match="is to be for 'sd15', but the base is 'miniature'"):
        train_predictor(replace(job, network=replace(NETWORK, family="sd15")))
    with pytest.raises(ConfigError, match="unknown tracker 'none'"):
        train_predictor(replace(job, config=replace(CONFIG, trackers=("none",))))
    with pytest.raises(MissingDependencyError, match="pip install aim"):
        train_predictor(replace(job, config=replace(CONFIG, trackers=("aim",))))
    assert not job.work.exists()


def test_the_plan_multiplies_what_was_measured_and_leaves_nothing_behind(job: PredictorJob, tmp_path: Path) -> None:
    long = replace(job, config=replace(CONFIG, steps=1000, look_every=0))
    plan, of_two = measure(long), measure(long, processes=2, people=6000)
    assert not list(tmp_path.iterdir())
    assert plan.hours == pytest.approx(1000 * plan.seconds_a_step / 3600) and plan.seconds_a_step > 0
    assert of_two.device_hours == pytest.approx(2 * of_two.hours)
    assert of_two.corpus_bytes["pictures"] == 1000 * job.corpus.parts["pictures"].bytes
    parameters = sum(p.numel() for p in job.new_network().parameters())
    # Weights, their averages and two moments, in 32 bits.
    assert plan.checkpoint_bytes == pytest.approx(16 * parameters, rel=0.1)
    assert plan.memory_bytes > 2**20 and plan.problems == () and "1,000 steps of" in plan.text()


def test_the_plan_says_what_does_not_fit(job: PredictorJob, monkeypatch: pytest.MonkeyPatch) -> None:
    from hyperdream_core.pipelines.training import plan

    def too_much(*arguments: object, **settings: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(plan, "train_predictor", too_much)
    found = measure(job)
    assert len(found.problems) == 1
    assert "2 subjects with 1 pictures each do not fit in" in found.problems[0]
    assert "use --micro-batch 1, --recompute or --dtype bf16" in found.problems[0]
