from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from hyperdream_core.errors import ConfigError
from hyperdream_core.ops import noise
from hyperdream_core.ops.noise import PREDICTION_TYPES


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ALPHA_BAR = torch.tensor([0.9, 0.5, 0.01], dtype=torch.float64)


@pytest.fixture
def scheduler() -> type:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' import is not what is tested
        from diffusers import DDPMScheduler
    return DDPMScheduler


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("is_zero_terminal", [False, True])
def test_schedules_are_diffusers(scheduler: type, schedule: str, is_zero_terminal: bool) -> None:
    theirs = scheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule=schedule, rescale_betas_zero_snr=is_zero_terminal
    ).alphas_cumprod.double()
    ours = noise.alphas_cumprod(schedule)
    ours = noise.zero_terminal_snr(ours) if is_zero_terminal else ours
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # theirs is a float32 product of 1000 factors
    assert not is_zero_terminal or ours[-1].item() == 0


def test_noising_and_velocity_are_diffusers(scheduler: type) -> None:
    theirs, x0, epsilon = scheduler(), draw(3, 4, 2, 2), draw(3, 4, 2, 2, seed=1)
    timesteps = torch.tensor([0, 500, 999])
    alpha_bar = theirs.alphas_cumprod[timesteps].double()
    theirs.alphas_cumprod = theirs.alphas_cumprod.double()
    torch.testing.assert_close(noise.add_noise(x0, epsilon, alpha_bar), theirs.add_noise(x0, epsilon, timesteps))
    torch.testing.assert_close(noise.velocity(x0, epsilon, alpha_bar), theirs.get_velocity(x0, epsilon, timesteps))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_perfect_prediction_gives_back_sample_and_noise(prediction_type: str) -> None:
    x0, epsilon = draw(3, 4, 2, 2), draw(3, 4, 2, 2, seed=1)
    x_t = noise.add_noise(x0, epsilon, ALPHA_BAR)
    output = noise.target(x0, epsilon, ALPHA_BAR, prediction_type)
    torch.testing.assert_close(noise.predicted_x0(output, x_t, ALPHA_BAR, prediction_type), x0)
    torch.testing.assert_close(noise.predicted_noise(output, x_t, ALPHA_BAR, prediction_type), epsilon)


def test_half_precision_samples_keep_their_dtype() -> None:
    x_t = noise.add_noise(draw(3, 2).half(), draw(3, 2, seed=1).half(), ALPHA_BAR.float())
    assert x_t.dtype == torch.float16


def test_every_timestep_survives_the_way_to_t_and_back() -> None:
    for count in (10, 1000):
        timesteps = torch.arange(count)
        assert torch.equal(noise.to_timestep(noise.to_t(timesteps, count), count), timesteps)


def test_t_is_0_when_clean_and_1_in_noise_and_bands_own_their_timesteps() -> None:
    assert noise.to_timestep(torch.tensor([0.0, 0.4, 0.49999, 0.5, 1.0]), 10).tolist() == [0, 4, 4, 5, 9]


def test_the_noise_bias_has_the_stated_mean() -> None:
    for power in (1.0, 3.0):
        t = noise.biased_t(torch.Generator().manual_seed(0), 20000, power)
        assert t.min() >= 0 and t.max() <= 1
        # The mean of density power * t^(power - 1); five standard errors of 20000 draws are below 0.011.
        assert t.mean().item() == pytest.approx(power / (power + 1), abs=0.011)


def test_min_snr_weighs_the_clean_sample_error_alike_for_every_prediction_type() -> None:
    snr = ALPHA_BAR / (1 - ALPHA_BAR)
    clipped = snr.clamp(max=5.0)
    torch.testing.assert_close(noise.min_snr_weight(ALPHA_BAR, "sample"), clipped)
    torch.testing.assert_close(noise.min_snr_weight(ALPHA_BAR, "epsilon"), clipped / snr)
    torch.testing.assert_close(noise.min_snr_weight(ALPHA_BAR, "v_prediction"), clipped / (snr + 1))


def test_pure_noise_has_a_finite_weight() -> None:
    weights = [noise.min_snr_weight(torch.zeros(1), kind).item() for kind in PREDICTION_TYPES]
    assert weights == [1.0, 0.0, 0.0]


def test_unknown_words_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown noise schedule 'cosine'; known: linear"):
        noise.alphas_cumprod("cosine")
    with pytest.raises(ConfigError, match="unknown prediction type 'v'; known: epsilon"):
        noise.target(draw(3, 2), draw(3, 2), ALPHA_BAR, "v")
    with pytest.raises(ConfigError, match=r"above 0, got 0\.0"):
        noise.biased_t(torch.Generator(), 1, 0.0)
