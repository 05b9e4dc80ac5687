"""Samplers on noise processes, against diffusers' schedulers and against a flow whose end is known."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperdream_core.errors import ConfigError
from hyperdream_core.ops.noise import (
    PREDICTION_TYPES,
    DiscreteDiffusion,
    NoiseProcess,
    RectifiedFlow,
    alphas_cumprod,
    zero_terminal_snr,
)
from hyperdream_core.pipelines.drawing.samplers import SAMPLERS, denoise

NOISE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def network(noisy: Tensor, time: Tensor) -> Tensor:
    """Some smooth output that depends on both its inputs."""
    return 0.8 * (noisy + 0.3 * noisy.roll(1, -1)).tanh() * (1 + time.reshape(-1, 1, 1, 1) / 2000)


def ours(process: NoiseProcess, sampler: str, steps: int) -> Tensor:
    def clean_at(noisy: Tensor, t: Tensor) -> Tensor:
        return process.clean(network(noisy, process.model_time(t).float()), noisy, t)

    return denoise(process, sampler, steps, NOISE, clean_at)


def theirs(scheduler: Any, **options: Any) -> Tensor:
    with warnings.catch_warnings():
        # diffusers hands tensors to NumPy in a way that NumPy 2 wants to do away with.
        warnings.simplefilter("ignore", DeprecationWarning)
        scheduler.set_timesteps(**options)
    noisy = NOISE
    for time in scheduler.timesteps:
        noisy = scheduler.step(network(noisy, time.float()), time, noisy, return_dict=False)[0]
    return noisy


def diffusers_own(sampler: str, alphas: Tensor, prediction_type: str) -> Any:
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    betas = 1 - alphas / torch.cat([torch.ones(1, dtype=torch.float64), alphas[:-1]])
    options: dict[str, Any] = {
        "num_train_timesteps": len(betas),
        "trained_betas": betas.numpy(),
        "prediction_type": prediction_type,
        "timestep_spacing": "trailing",
    }
    if sampler == "ddim":
        return DDIMScheduler(clip_sample=False, set_alpha_to_one=True, **options)
    return DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, **options)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_of_discrete_diffusion_they_are_diffusers_own(sampler: str, steps: int, prediction_type: str) -> None:
    process = DiscreteDiffusion(alphas_cumprod().float(), prediction_type)
    expected = theirs(diffusers_own(sampler, alphas_cumprod(), prediction_type), num_inference_steps=steps)
    # Up to float32's share of a schedule that is a product of 1,000 factors.
    torch.testing.assert_close(ours(process, sampler, steps), expected, rtol=2e-3, atol=2e-3)


def test_the_second_order_also_takes_steps_that_do_not_divide_the_schedule() -> None:
    process = DiscreteDiffusion(alphas_cumprod().float(), "v_prediction")
    expected = theirs(diffusers_own("dpm++", alphas_cumprod(), "v_prediction"), num_inference_steps=7)
    torch.testing.assert_close(ours(process, "dpm++", 7), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("steps", [1, 5])
def test_of_a_flow_ddim_is_eulers_method(steps: int) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    sigmas = [1 - step / steps for step in range(steps)]
    expected = theirs(FlowMatchEulerDiscreteScheduler(shift=3.0), sigmas=sigmas)
    torch.testing.assert_close(ours(RectifiedFlow(shift=3.0), "ddim", steps), expected, rtol=1e-4, atol=1e-4)


def gaussian_clean(process: NoiseProcess, mean: float, deviation: float) -> Callable[[Tensor, Tensor], Tensor]:
    """What the best network sees in noisy samples of a Gaussian: its mean, moved by the surprise of the sample."""

    def clean_at(noisy: Tensor, t: Tensor) -> Tensor:
        at = process.coefficients(t)
        gain = at.signal * deviation**2 / (at.signal.square() * deviation**2 + at.spread.square())
        clean = mean + gain * (noisy - at.signal * mean)
        noise = (noisy - at.signal * clean) / at.spread
        # By way of the network's output, as a network would say it.
        return process.clean(process.target(clean, noise, t), noisy, t)

    return clean_at


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    "process",
    [
        RectifiedFlow(),
        RectifiedFlow(shift=3.0),
        DiscreteDiffusion(zero_terminal_snr(alphas_cumprod()).float(), "v_prediction"),
    ],
    ids=["flow", "shifted flow", "v in pure noise"],
)
def test_a_known_gaussian_is_drawn_with_its_mean_and_deviation(process: NoiseProcess, sampler: str) -> None:
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(1))
    drawn = denoise(process, sampler, 50, noise, gaussian_clean(process, mean=2.0, deviation=0.5))
    # Four standard errors of 20,000 draws are 0.014; the rest is what 50 steps leave.
    assert drawn.mean().item() == pytest.approx(2.0, abs=0.04)
    assert drawn.std().item() == pytest.approx(0.5, abs=0.04)
    # In order, up to rounding: more of the noise is more of the picture.
    assert drawn[noise.argsort()].diff().min() > -1e-5


def test_the_second_order_is_nearer_the_end_than_the_first() -> None:
    process = RectifiedFlow()
    clean_at = gaussian_clean(process, mean=2.0, deviation=0.5)
    # The flow of a Gaussian keeps each sample's place in units of its deviation.
    exact = 2.0 + 0.5 * NOISE
    errors = [float((denoise(process, name, 10, NOISE, clean_at) - exact).abs().max()) for name in ("dpm++", "ddim")]
    assert errors[0] < 0.5 * errors[1]


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown sampler 'euler'; known: dpm\+\+, ddim"):
        denoise(RectifiedFlow(), "euler", 1, NOISE, lambda noisy, t: noisy)
