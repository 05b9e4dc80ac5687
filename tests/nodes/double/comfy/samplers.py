"""Sampling: a guider asks for predictions, which are made in one batch; and the plainest sampler, Euler's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from . import model_sampling
from .model_patcher import ModelPatcher, call_unet
from .patcher_extension import WrappersMP, wrapped

Cond = list[dict[str, Any]]

batches: list[list[int]] = []
"""`cond_or_uncond` of every call of a UNet since a test has cleared it"""


def calc_cond_batch(
    model: Any, conds: Sequence[Cond | None], x: Tensor, timestep: Tensor, model_options: dict[str, Any]
) -> list[Tensor]:
    call = wrapped(_calc_cond_batch, None, WrappersMP.CALC_COND_BATCH, model_options["transformer_options"])
    found: list[Tensor] = call(model, conds, x, timestep, model_options)
    return found


def _calc_cond_batch(
    model: Any, conds: Sequence[Cond | None], x: Tensor, timestep: Tensor, model_options: dict[str, Any]
) -> list[Tensor]:
    # The last one asked for comes first in the batch.
    chunks = [(index, cond[0]["cross_attn"]) for index, cond in enumerate(conds) if cond is not None][::-1]
    numbers = [index for index, _ in chunks]
    batches.append(numbers)
    context = torch.cat([tokens.expand(len(x), -1, -1) for _, tokens in chunks])
    sigma = timestep.repeat(len(chunks))
    options = {**model_options["transformer_options"], "cond_or_uncond": numbers, "sigmas": timestep}
    noisy, scale = x.repeat(len(chunks), 1, 1, 1), sigma[:, None, None, None]
    steps = model.model_sampling.timestep(sigma).float()
    predicted = call_unet(model.diffusion_model, noisy / (scale**2 + 1) ** 0.5, steps, context, options)
    if isinstance(model.model_sampling, model_sampling.V_PREDICTION):
        clean = noisy / (scale**2 + 1) - predicted * scale / (scale**2 + 1) ** 0.5
    else:
        clean = noisy - predicted * scale
    outputs = [torch.zeros_like(x) for _ in conds]
    for index, output in zip(numbers, clean.chunk(len(chunks)), strict=True):
        outputs[index] = output
    return outputs


def sampling_function(
    model: Any,
    x: Tensor,
    timestep: Tensor,
    uncond: Cond | None,
    cond: Cond,
    cond_scale: float,
    model_options: dict[str, Any],
    seed: int | None = None,
) -> Tensor:
    uncond = None if math.isclose(cond_scale, 1.0) else uncond
    prompt, null = calc_cond_batch(model, [cond, uncond], x, timestep, model_options)
    return null + (prompt - null) * cond_scale


class CFGGuider:
    def __init__(self, patcher: ModelPatcher) -> None:
        self.patcher, self.cfg = patcher, 1.0
        self.original_conds: dict[str, Cond] = {}

    def set_conds(self, positive: Any, negative: Any) -> None:
        self.inner_set_conds({"positive": positive, "negative": negative})

    def set_cfg(self, cfg: float) -> None:
        self.cfg = cfg

    def inner_set_conds(self, conds: dict[str, Any]) -> None:
        for name, cond in conds.items():
            self.original_conds[name] = [{**facts, "cross_attn": tokens} for tokens, facts in cond]

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: Any = None) -> Tensor:
        negative, positive = self.conds.get("negative"), self.conds["positive"]
        return sampling_function(self.inner_model, x, timestep, negative, positive, self.cfg, model_options, seed)

    def sample(self, noise: Tensor, steps: int) -> Tensor:
        """The latents (b, c, h, w) after as many steps of Euler's method."""
        self.conds = {name: [dict(entry) for entry in cond] for name, cond in self.original_conds.items()}
        self.inner_model, options = self.patcher.model, self.patcher.model_options
        call = wrapped(self.outer_sample, self, WrappersMP.OUTER_SAMPLE, options["transformer_options"])
        latents: Tensor = call(noise, steps)
        return latents

    def outer_sample(self, noise: Tensor, steps: int) -> Tensor:
        self.patcher.patch()
        known = self.inner_model.model_sampling.sigmas
        sigmas = torch.cat([known[torch.linspace(len(known) - 1, 0, steps).round().long()], torch.zeros(1)])
        options = self.patcher.model_options
        predict = wrapped(self.predict_noise, self, WrappersMP.PREDICT_NOISE, options["transformer_options"])
        x = noise * sigmas[0]
        for now, following in pairwise(sigmas):
            clean = predict(x, now.expand(len(x)), options, None)
            x = clean + (x - clean) / now * following
        return x
