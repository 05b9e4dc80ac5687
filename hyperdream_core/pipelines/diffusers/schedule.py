"""What a base's UNet predicts and on which noise schedule: said by its file, assumed, or asked for.

SD 2.x comes in two kinds whose tensors have the same names and shapes, and so do v-prediction models of SD 1.x and
SDXL. Where a file says nothing the usual kind of its family is assumed, and that is said.

Source of the marks: ComfyUI, `supported_models.py` (reads them) and `nodes_model_merging.py` (writes them).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...bases import BaseFamily
from ...errors import BaseMismatchError, ConfigError, FileFormatError, quoted
from ...json_text import read_json
from ...ops.noise import PREDICTION_TYPES, DiscreteDiffusion, NoiseProcess, RectifiedFlow

ASKED_FOR = ("epsilon", "v_prediction")
"""What can be asked for against a file, in diffusers' words."""

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
"""Of SD 1.x, 2.x and SDXL alike, as in their published inference configurations."""

_WORDS = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
    "v-prediction": "v_prediction",
    "v_pred": "v_prediction",
    "vpred": "v_prediction",
}
_SAID_UNDER = ("modelspec.prediction_type", "modelspec.predict_key")
"""The model specification's and ComfyUI's keys of a checkpoint's metadata."""
_V_MARK, _ZERO_SNR_MARK = "v_pred", "ztsnr"
# EDM's networks are given other inputs and put out other numbers: taken for SDXL's they draw noise.
_EDM_MARKS = {
    "edm_mean": "Playground 2.5",
    "edm_std": "Playground 2.5",
    "edm_vpred.sigma_max": "CosXL",
    "edm_vpred.sigma_min": "CosXL",
}
_EDM_CLASSES = ("EDM", "CosineDPM", "Karras", "ScoreSde", "VQDiffusion", "CMStochastic")
_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
_MOST_TIMESTEPS = 100_000
_SAY_OTHERWISE = "--prediction-type says otherwise"


@dataclass(frozen=True, eq=False, kw_only=True)
class Schedule:
    """A noise schedule and where it comes from."""

    config: Mapping[str, Any]
    """in diffusers' words"""
    noise: NoiseProcess
    assumptions: tuple[str, ...] = ()
    """what its file did not say, as sentences for whoever uses it"""


def noise_process_of(config: Mapping[str, Any]) -> NoiseProcess:
    """The noise process that a diffusers scheduler configuration describes.

    Raises:
        ConfigError: an entry is unknown or out of range; names it.
    """
    from diffusers import DDPMScheduler

    name = str(config.get("_class_name", ""))
    count = _whole(config, "num_train_timesteps", 1000)
    if name.startswith(_EDM_CLASSES) or config.get("timestep_type") == "continuous":
        raise ConfigError(
            f"the noise schedule is that of {quoted(name)} (EDM or continuous noise), which is not understood; use a "
            "base with epsilon or v prediction"
        )
    if name.startswith("FlowMatch"):
        return RectifiedFlow(shift=_number(config, "shift", 1.0, 1e-3, 1e3), time_scale=float(count))
    prediction = _one_of(config, "prediction_type", "epsilon", PREDICTION_TYPES)
    start, end = _number(config, "beta_start", 0.0001, 1e-9, 0.9999), _number(config, "beta_end", 0.02, 1e-9, 0.9999)
    if start >= end:
        raise ConfigError(
            f"beta_start {start:g} of the noise schedule is not below beta_end {end:g}, but noise must grow; correct it"
        )
    known = {
        "num_train_timesteps": count,
        "beta_schedule": _one_of(config, "beta_schedule", "linear", _BETAS),
        "beta_start": start,
        "beta_end": end,
        "rescale_betas_zero_snr": _flag(config, "rescale_betas_zero_snr"),
        "trained_betas": _trained(config, count),
    }
    alphas: Tensor = DDPMScheduler.from_config(known).alphas_cumprod.float()
    # Written so that NaN is refused as well. The last entries of a long schedule may all be 0.
    if not bool(((alphas >= 0) & (alphas < 1)).all() and (alphas.diff() <= 0).all() and alphas[0] > alphas[-1]):
        raise ConfigError("the noise schedule's signal does not fall from below 1 towards 0; correct its betas")
    return DiscreteDiffusion(alphas, prediction)


def schedule_in_folder(file: Path, asked: str | None = None) -> Schedule:
    """The schedule in a diffusers folder's `scheduler_config.json`.

    Args:
        file: the configuration.
        asked: one of `ASKED_FOR`, against whatever the file says; None follows it.

    Raises:
        FileFormatError: not there, no JSON, or an entry out of range.
        ConfigError: something else is asked for.
    """
    _check_asked(asked)
    # Several of diffusers' schedulers write -Infinity for what they do not clip.
    config = read_json(file, finite=False)
    said = config.get("prediction_type")
    assumptions: tuple[str, ...] = ()
    if str(config.get("_class_name", "")).startswith("FlowMatch"):
        if asked is not None:
            raise ConfigError(
                f"prediction type {asked!r} is asked for, but {file.name} says that the base is a flow, which has "
                "none; leave it out"
            )
    elif asked is not None:
        assumptions = _against(file.name, said, asked)
        config = {**config, "prediction_type": asked}
    elif said is None:
        assumptions = (
            f"{file.name} does not say what the UNet predicts; epsilon is assumed, as diffusers does "
            f"({_SAY_OTHERWISE})",
        )
    try:
        return Schedule(config=config, noise=noise_process_of(config), assumptions=assumptions)
    except ConfigError as error:
        raise FileFormatError(file, str(error)) from error


def schedule_of_file(
    path: Path, family: BaseFamily, metadata: Mapping[str, str], names: Collection[str], asked: str | None = None
) -> Schedule:
    """The schedule of a single-file checkpoint, which says at most what its UNet predicts.

    Args:
        path: of the checkpoint.
        family: that it is of.
        metadata: of its header.
        names: of its tensors.
        asked: one of `ASKED_FOR`, against whatever the file says; None follows it.

    Raises:
        BaseMismatchError: EDM's, such as Playground 2.5 and CosXL.
        FileFormatError: it says something unknown.
        ConfigError: something else is asked for.
    """
    _check_asked(asked)
    refuse_edm(path, names)
    said = _said(path, metadata, asked)
    if asked is not None:
        prediction, assumptions = asked, _against(path.name, "v_prediction" if _V_MARK in names else said, asked)
    elif _V_MARK in names:
        prediction, assumptions = "v_prediction", _against_mark(path.name, said)
    elif said is not None:
        prediction, assumptions = said, ()
    else:
        prediction, other = family.prediction_types[0], family.prediction_types[1]
        assumptions = (
            f"{path.name} does not say what its UNet predicts; {prediction} is assumed, as most checkpoints of "
            f"{family.title} do, though some do {other} ({_SAY_OTHERWISE})",
        )
    config = {
        "_class_name": "DDIMScheduler",
        **SCHEDULE,
        "prediction_type": prediction,
        "rescale_betas_zero_snr": _ZERO_SNR_MARK in names,
    }
    return Schedule(config=config, noise=noise_process_of(config), assumptions=assumptions)


def refuse_edm(path: Path, names: Collection[str]) -> None:
    """Refuse a checkpoint of EDM's kind by the marks that it carries.

    Raises:
        BaseMismatchError: it is one.
    """
    found = next((mark for mark in _EDM_MARKS if mark in names), None)
    if found is not None:
        raise BaseMismatchError(
            f"{path.name}: is an EDM checkpoint (it holds {found!r}), as {_EDM_MARKS[found]} is, whose network is "
            "given other inputs; use a checkpoint with epsilon or v prediction"
        )


def _said(path: Path, metadata: Mapping[str, str], asked: str | None) -> str | None:
    """What the metadata says that the UNet predicts, if anything."""
    for key in _SAID_UNDER:
        word = metadata.get(key, "").strip().lower()
        if word in _WORDS:
            return _WORDS[word]
        if word and asked is None:
            raise FileFormatError(
                path,
                f"says in its metadata that its UNet predicts {quoted(word)}, but {' and '.join(ASKED_FOR)} are known; "
                "if it is one of these, say which with --prediction-type",
            )
    kind = metadata.get("modelspec.architecture", "").removesuffix("/lora")
    return {"stable-diffusion-v2-768-v": "v_prediction", "stable-diffusion-v2-512": "epsilon"}.get(kind)


def _check_asked(asked: str | None) -> None:
    if asked is not None and asked not in ASKED_FOR:
        raise ConfigError(f"the prediction type must be one of {', '.join(ASKED_FOR)}, got {quoted(asked)}")


def _against(name: str, said: object, asked: str) -> tuple[str, ...]:
    if said is None or said == asked:
        return ()
    return (f"{name} says that its UNet predicts {quoted(said)}; {asked} is taken, as asked for",)


def _against_mark(name: str, said: str | None) -> tuple[str, ...]:
    if said in (None, "v_prediction"):
        return ()
    return (
        f"{name} says in its metadata that its UNet predicts {said}, but carries the mark {_V_MARK!r}; v_prediction is "
        f"assumed, as ComfyUI does ({_SAY_OTHERWISE})",
    )


def _whole(config: Mapping[str, Any], key: str, default: int) -> int:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 2 <= value <= _MOST_TIMESTEPS:
        _refuse(key, value, f"a whole number of 2 to {_MOST_TIMESTEPS:,}")
    return int(value)


def _number(config: Mapping[str, Any], key: str, default: float, least: float, most: float) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        _refuse(key, value, f"a number of {least:g} to {most:g}")
    return float(value)


def _flag(config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        _refuse(key, value, "true or false")
    return bool(value)


def _one_of(config: Mapping[str, Any], key: str, default: str, known: tuple[str, ...]) -> str:
    value = config.get(key, default)
    if not isinstance(value, str) or value not in known:
        _refuse(key, value, f"one of {', '.join(known)}")
    return str(value)


def _trained(config: Mapping[str, Any], count: int) -> list[float] | None:
    values = config.get("trained_betas")
    if values is None:
        return None
    if (
        not isinstance(values, list)
        or len(values) != count
        or not all(type(one) in (int, float) and 0 < one < 1 for one in values)
    ):
        _refuse("trained_betas", values, f"{count} numbers between 0 and 1, one for each timestep,")
    return [float(one) for one in values]


def _refuse(key: str, value: object, expected: str) -> None:
    raise ConfigError(f"{key} of the noise schedule is {quoted(value)}, but {expected} is expected; correct it")
