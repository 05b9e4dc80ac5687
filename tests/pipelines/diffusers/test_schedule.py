"""What a base predicts: said by its files, assumed aloud, or asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hyperdream_core.bases import get_base
from hyperdream_core.cli.commands.inspect import format_report, inspect_file
from hyperdream_core.errors import BaseMismatchError, ConfigError, FileFormatError
from hyperdream_core.ops.noise import DiscreteDiffusion
from hyperdream_core.pipelines.diffusers.loading import base_family, load_base
from hyperdream_core.pipelines.diffusers.schedule import SCHEDULE, noise_process_of, schedule_of_file

FILE = Path("model.safetensors")


@pytest.mark.parametrize(
    ("family", "metadata", "marks", "asked", "taken", "said"),
    [
        ("sd15", {}, [], None, "epsilon", "does not say what its UNet predicts; epsilon is assumed"),
        ("sd2", {}, [], None, "v_prediction", "v_prediction is assumed, as most.*though some do epsilon"),
        ("sd2", {}, [], "epsilon", "epsilon", None),
        ("sd2", {"modelspec.architecture": "stable-diffusion-v2-512"}, [], None, "epsilon", None),
        ("sd2", {"modelspec.architecture": "stable-diffusion-v2-768-v"}, [], None, "v_prediction", None),
        ("sdxl", {"modelspec.prediction_type": "epsilon"}, [], None, "epsilon", None),
        ("sdxl", {"modelspec.prediction_type": "V"}, [], None, "v_prediction", None),
        ("sdxl", {"modelspec.predict_key": "v"}, [], None, "v_prediction", None),
        ("sdxl", {}, ["v_pred"], None, "v_prediction", None),
        (
            "sdxl",
            {"modelspec.prediction_type": "epsilon"},
            ["v_pred"],
            None,
            "v_prediction",
            "carries the mark 'v_pred'",
        ),
        ("sdxl", {}, ["v_pred"], "epsilon", "epsilon", "says that its UNet predicts 'v_prediction'; epsilon is taken"),
        ("sdxl", {"modelspec.prediction_type": "flow"}, [], "epsilon", "epsilon", None),
    ],
)
def test_a_single_file_is_taken_as_it_says_and_what_it_does_not_say_is_said(
    family: str, metadata: dict[str, str], marks: list[str], asked: str | None, taken: str, said: str | None
) -> None:
    found = schedule_of_file(FILE, get_base(family), metadata, marks, asked)
    assert found.noise.name == found.config["prediction_type"] == taken
    if said is None:
        assert found.assumptions == ()
    else:
        (sentence,) = found.assumptions
        assert sentence.startswith("model.safetensors ")
        with pytest.raises(AssertionError, match=said):
            raise AssertionError(sentence)


def test_zero_terminal_snr_is_followed_where_the_file_is_marked() -> None:
    found = schedule_of_file(FILE, get_base("sdxl"), {}, ["v_pred", "ztsnr"])
    assert isinstance(found.noise, DiscreteDiffusion) and found.noise.alphas_cumprod[-1] == 0


def test_a_prediction_that_nobody_knows_is_refused_with_the_flag_that_helps() -> None:
    with pytest.raises(FileFormatError, match=r"predicts 'flow', but epsilon and v_prediction.*--prediction-type"):
        schedule_of_file(FILE, get_base("sdxl"), {"modelspec.prediction_type": "flow"}, [])
    with pytest.raises(ConfigError, match="must be one of epsilon, v_prediction, got 'sample'"):
        schedule_of_file(FILE, get_base("sdxl"), {}, [], "sample")


@pytest.mark.parametrize("mark", ["edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min"])
def test_an_edm_checkpoint_is_refused_by_name_everywhere(mark: str, tmp_path: Path) -> None:
    file = tmp_path / "edm.safetensors"
    save_file({mark: torch.zeros(4)}, file)
    for ask in (load_base, base_family):
        with pytest.raises(BaseMismatchError, match=r"edm\.safetensors: is an EDM checkpoint.*use a checkpoint with"):
            ask(file)
    assert "EDM checkpoint" in inspect_file(file)["problem"]


def test_what_is_assumed_of_a_file_is_in_the_base_and_in_inspect(single_file: Path, tmp_path: Path) -> None:
    silent = tmp_path / "silent.safetensors"
    save_file(load_file(single_file), silent)
    (sentence,) = load_base(silent).assumptions
    assert sentence.startswith("silent.safetensors does not say what its UNet predicts; v_prediction is assumed")
    report = inspect_file(silent)
    assert (report["prediction_type"], report["assumptions"]) == ("v_prediction", [sentence])
    assert sentence in format_report(report)
    asked = load_base(silent, prediction_type="epsilon")
    assert (asked.noise.name, asked.scheduler_config["prediction_type"]) == ("epsilon", "epsilon")
    assert asked.assumptions == () == load_base(single_file).assumptions


def test_what_is_assumed_of_a_folder_is_said_too(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "base")
    file = tmp_path / "base" / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    del config["prediction_type"]
    file.write_text(json.dumps(config))
    base = load_base(tmp_path / "base")
    assert base.noise.name == "epsilon" and "does not say what the UNet predicts; epsilon" in base.assumptions[0]
    assert inspect_file(tmp_path / "base")["assumptions"] == list(base.assumptions)
    assert load_base(tmp_path / "base", prediction_type="v_prediction").noise.name == "v_prediction"
    said = load_base(folder, prediction_type="epsilon")
    assert said.noise.name == "epsilon" and "predicts 'v_prediction'; epsilon is taken" in said.assumptions[0]
    file.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler"}))
    with pytest.raises(ConfigError, match="is a flow, which has none; leave it out"):
        load_base(tmp_path / "base", prediction_type="epsilon")


NAN = float("nan")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"beta_start": 0.012, "beta_end": 0.00085}, "beta_start 0.012 of the noise schedule is not below beta_end"),
        ({"beta_start": 0.01, "beta_end": 0.01}, "not below"),
        ({"beta_start": NAN}, "beta_start of the noise schedule is 'nan'"),
        ({"beta_end": float("inf")}, "beta_end"),
        ({"beta_end": 1.0}, "beta_end"),
        ({"beta_start": -0.1}, "beta_start"),
        ({"beta_start": "low"}, "beta_start"),
        ({"beta_end": True}, "beta_end"),
        ({"beta_start": None}, "beta_start"),
        ({"num_train_timesteps": 0}, "num_train_timesteps"),
        ({"num_train_timesteps": 1}, "num_train_timesteps"),
        ({"num_train_timesteps": -5}, "num_train_timesteps"),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps"),
        ({"num_train_timesteps": 10.5}, "num_train_timesteps"),
        ({"num_train_timesteps": True}, "num_train_timesteps"),
        ({"trained_betas": [0.1] * 999}, "trained_betas of the noise schedule.*1000 numbers"),
        ({"trained_betas": [0.1] * 999 + [1.5]}, "trained_betas"),
        ({"trained_betas": [0.1] * 999 + [NAN]}, "trained_betas"),
        ({"trained_betas": [0.1] * 999 + ["x"]}, "trained_betas"),
        ({"trained_betas": 0.1}, "trained_betas"),
        ({"beta_schedule": "evil"}, "beta_schedule of the noise schedule is 'evil', but one of linear"),
        ({"beta_schedule": ["linear"]}, "beta_schedule"),
        ({"prediction_type": "flow"}, "prediction_type of the noise schedule is 'flow', but one of epsilon"),
        ({"prediction_type": None}, "prediction_type"),
        ({"rescale_betas_zero_snr": "yes"}, "rescale_betas_zero_snr"),
        ({"beta_start": 1e-9, "beta_end": 2e-9}, "does not fall"),
        ({"_class_name": "EDMEulerScheduler"}, "EDM or continuous"),
        ({"timestep_type": "continuous"}, "EDM or continuous"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 0}, "shift"),
    ],
)
def test_a_schedule_out_of_range_is_refused_and_its_entry_named(entries: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        noise_process_of({**SCHEDULE, **entries})


def test_schedules_that_are_used_are_taken() -> None:
    for entries in (
        {"trained_betas": [0.001] * 500 + [0.002] * 500},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "linear", "num_train_timesteps": 100_000},
        {"lambda_min_clipped": float("-inf"), "_class_name": "DPMSolverMultistepScheduler"},
    ):
        assert noise_process_of({**SCHEDULE, **entries}).name == "epsilon"
