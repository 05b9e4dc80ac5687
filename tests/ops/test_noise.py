from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from hyperdream_core.errors import ConfigError
from hyperdream_core.ops import noise
from hyperdream_core.ops.noise import PREDICTION_TYPES, DiscreteDiffusion, NoiseProcess, RectifiedFlow


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ALPHA_BAR = torch.tensor([0.9, 0.5, 0.01], dtype=torch.float64)
T = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
"""one level in each of three timesteps"""
DISCRETE = {kind: DiscreteDiffusion(ALPHA_BAR, kind) for kind in PREDICTION_TYPES}
PROCESSES: dict[str, NoiseProcess] = {**DISCRETE, "flow": RectifiedFlow(shift=3.0)}


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
    ours = DiscreteDiffusion(theirs.alphas_cumprod.double(), "v_prediction")
    t, timesteps = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0, 500, 999])
    theirs.alphas_cumprod = theirs.alphas_cumprod.double()
    assert torch.equal(ours.model_time(t), timesteps)
    torch.testing.assert_close(ours.noisy(x0, epsilon, t), theirs.add_noise(x0, epsilon, timesteps))
    torch.testing.assert_close(ours.target(x0, epsilon, t), theirs.get_velocity(x0, epsilon, timesteps))


def test_a_flow_is_a_straight_way_as_diffusers_has_it() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    theirs, ours = FlowMatchEulerDiscreteScheduler(shift=3.0), RectifiedFlow(shift=3.0)
    x0, epsilon = draw(4, 4, 2, 2).float(), draw(4, 4, 2, 2, seed=1).float()
    theirs.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    t = ours.levels(4)
    torch.testing.assert_close(t, theirs.sigmas[:-1])
    torch.testing.assert_close(ours.model_time(t), theirs.timesteps)
    torch.testing.assert_close(ours.noisy(x0, epsilon, t), theirs.scale_noise(x0, theirs.timesteps, epsilon))
    # The direction leads from the sample to the noise.
    torch.testing.assert_close(x0 + ours.target(x0, epsilon, t), epsilon)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_perfect_prediction_gives_back_sample_and_noise(name: str) -> None:
    process, x0, epsilon = PROCESSES[name], draw(3, 4, 2, 2), draw(3, 4, 2, 2, seed=1)
    assert process.name == name
    x_t, output = process.noisy(x0, epsilon, T), process.target(x0, epsilon, T)
    torch.testing.assert_close(process.clean(output, x_t, T), x0)
    torch.testing.assert_close(process.noise(output, x_t, T), epsilon)


def test_velocity_and_flow_tell_the_picture_in_pure_noise() -> None:
    x0, epsilon, one = draw(2, 4, 2, 2), draw(2, 4, 2, 2, seed=1), torch.ones(1)
    for process in (
        DiscreteDiffusion(noise.zero_terminal_snr(noise.alphas_cumprod()), "v_prediction"),
        RectifiedFlow(),
    ):
        x_t = process.noisy(x0, epsilon, one)
        torch.testing.assert_close(x_t, epsilon)
        torch.testing.assert_close(process.clean(process.target(x0, epsilon, one), x_t, one), x0)


def test_epsilon_stays_finite_where_nothing_is_left_of_the_picture() -> None:
    process = DiscreteDiffusion(noise.zero_terminal_snr(noise.alphas_cumprod()).float(), "epsilon")
    assert process.clean(draw(1, 4).float(), draw(1, 4, seed=1).float(), torch.ones(1)).isfinite().all()


def test_half_precision_samples_keep_their_dtype() -> None:
    for process in PROCESSES.values():
        x0, epsilon = draw(3, 2).half(), draw(3, 2, seed=1).half()
        assert process.noisy(x0, epsilon, T).dtype == process.target(x0, epsilon, T).dtype == torch.float16
        assert process.clean(epsilon, x0, T).dtype == torch.float16


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


def test_min_snr_weighs_the_clean_sample_error_alike_for_every_process() -> None:
    snr = ALPHA_BAR / (1 - ALPHA_BAR)
    clipped = snr.clamp(max=5.0)
    torch.testing.assert_close(noise.min_snr_weight(DISCRETE["sample"], T), clipped)
    torch.testing.assert_close(noise.min_snr_weight(DISCRETE["epsilon"], T), clipped / snr)
    torch.testing.assert_close(noise.min_snr_weight(DISCRETE["v_prediction"], T), clipped / (snr + 1))
    flow, x_t, output, change = RectifiedFlow(), draw(3, 2), draw(3, 2, seed=1), draw(3, 2, seed=2)
    weights = noise.min_snr_weight(flow, T)[:, None]
    moved = flow.clean(output + change, x_t, T) - flow.clean(output, x_t, T)
    flows = ((1 - T) / T).square().clamp(max=5.0)[:, None]
    torch.testing.assert_close(weights * change.square(), flows * moved.square())


def test_pure_noise_has_a_finite_weight() -> None:
    kinds = {kind: DiscreteDiffusion(torch.zeros(1), kind) for kind in PREDICTION_TYPES}
    weights = [noise.min_snr_weight(process, torch.ones(1)).item() for process in kinds.values()]
    assert weights == [1.0, 0.0, 0.0]


def test_unknown_words_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown noise schedule 'cosine'; known: linear"):
        noise.alphas_cumprod("cosine")
    with pytest.raises(ConfigError, match="unknown prediction type 'v'; known: epsilon"):
        DiscreteDiffusion(ALPHA_BAR, "v")
    with pytest.raises(ConfigError, match=r"shift of a flow must be above 0, got 0\.0"):
        RectifiedFlow(shift=0.0)
    with pytest.raises(ConfigError, match=r"above 0, got 0\.0"):
        noise.biased_t(torch.Generator(), 1, 0.0)
