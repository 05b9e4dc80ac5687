"""Bases of other noise than the miniature's: zero terminal SNR, and a rectified flow."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hyperdream_core.ops.noise import DiscreteDiffusion, RectifiedFlow
from hyperdream_core.pipelines.diffusers.diffusers_base import DiffusersBase
from hyperdream_core.pipelines.diffusers.schedule import noise_process_of
from hyperdream_core.pipelines.drawing.draw import DrawConfig, draw
from hyperdream_core.pipelines.polishing.polish import polish
from hyperdream_core.pipelines.polishing.polish_config import PolishConfig

PROMPT = "a sks face"


# The second order extrapolates a little after a first step that is long, and not after one that is infinitely so.
@pytest.mark.parametrize(("sampler", "tolerance"), [("dpm++", 0.02), ("ddim", 1e-3)])
def test_a_velocity_base_of_zero_terminal_snr_draws_pictures_and_not_black(
    base: DiffusersBase, sampler: str, tolerance: float
) -> None:
    plain = dict(base.scheduler_config)
    process = noise_process_of({**plain, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True})
    assert isinstance(process, DiscreteDiffusion) and process.alphas_cumprod[-1] == 0
    # Almost no signal in place of none: as good as the same, and nothing is divided by 0 there.
    nearly = replace(process, alphas_cumprod=process.alphas_cumprod.clamp_min(1e-8))
    config = DrawConfig(steps=4, size=32, sampler=sampler, guidance_scale=2.0)  # type: ignore[arg-type]
    drawn, expected = (draw(replace(base, noise=noise), [PROMPT], None, config) for noise in (process, nearly))
    assert drawn.isfinite().all() and drawn.std() > 0.01
    torch.testing.assert_close(drawn, expected, atol=tolerance, rtol=0)


def test_a_rectified_flow_base_is_polished_and_drawn_with(base: DiffusersBase, references: Tensor) -> None:
    flow = replace(base, noise=noise_process_of({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}))
    assert isinstance(flow.noise, RectifiedFlow) and flow.noise.shift == 3.0
    config = PolishConfig(steps=12, rank=4, batch=1, crops=0, learning_rate=0.06, noise_power=50.0)
    polished = polish(flow, references[:1], config=config).identity

    def error(adapter: bool) -> float:
        """Of the direction from the picture to noise that polishing has not seen, (b,) levels over the whole way."""
        t = torch.linspace(0.5, 1.0, 6)
        clean = flow.encode_image(references[:1]).expand(6, -1, -1, -1)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(99))
        with torch.no_grad(), flow.adapted(polished.expand(), float(adapter)):
            prompts = flow.encode_prompt([PROMPT] * 6)
            output = flow.predict(flow.noise.noisy(clean, noise, t), t, prompts)
        return float((output - (noise - clean)).square().mean())

    assert error(True) < 0.97 * error(False)
    picture = draw(flow, [PROMPT], polished, DrawConfig(steps=3, size=32))
    nobody = draw(flow, ["a face"], None, DrawConfig(steps=3, size=32))
    assert picture.isfinite().all() and not torch.allclose(picture, nobody, atol=1e-3)
