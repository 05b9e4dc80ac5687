"""Hybrid guidance in Forge, by the wrapper that its UNet patcher shares with ComfyUI.

A step begins with a modifier of its conditionings, which sets the scale; each call of the UNet is answered from one
call with a chunk for every part. Closures, no methods: the host copies the options of a patcher deeply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyperdream_core.pipelines.drawing.chunk_adapters import live_parts
from hyperdream_core.pipelines.drawing.guided_step import NULL, PROMPT, GuidedStep, Key, Part

from ..forge_base import noise_level
from .guided import LEFT_ALONE, Guided, of_one_length

_KINDS = (PROMPT, NULL)
"""by the host's number in `cond_or_uncond`"""


@dataclass(eq=False)
class _Now:
    """The step that is being drawn."""

    step: GuidedStep | None
    texts: dict[Key, Tensor]


def start(p: Any, guided: Guided, base_text: Any) -> None:
    """Guide the run that is about to begin, and none after it: the host takes a fresh patcher for each.

    Args:
        p: the host's processing.
        guided: what to guide with.
        base_text: the prompts that the base is asked, encoded by the host.
    """
    patcher = p.sd_model.forge_objects.unet.clone()
    now = _Now(None, {})
    patcher.add_conditioning_modifier(_step_beginner(p, guided, base_text, now))
    patcher.set_model_unet_function_wrapper(_unet_wrapper(patcher, now))
    p.sd_model.forge_objects.unet = patcher


def _step_beginner(p: Any, guided: Guided, base_text: Any, now: _Now) -> Callable[..., Any]:
    """Called before a step: sets its weights, its prompts, and the scale that goes with them."""
    from modules import prompt_parser

    def begin_step(
        model: Any, x: Tensor, sigma: Tensor, uncond: Any, cond: Any, scale: float, options: Any, seed: Any
    ) -> Any:
        now.step = None
        if len(cond) == 1:
            now.step = guided.guidance.step(noise_level(model, sigma[:1]), scale, x.device)
            _, text = prompt_parser.reconstruct_multicond_batch(base_text, p.sampler.model_wrap_cfg.step)
            now.texts = {(PROMPT, None): text, (PROMPT, 0): _text(cond)}
            if uncond is not None:
                now.texts |= {(NULL, None): _text(uncond), (NULL, 0): _text(uncond)}
            scale = now.step.scale
        else:
            p.comment(LEFT_ALONE)
        return model, x, sigma, uncond, cond, scale, options, seed

    return begin_step


def _unet_wrapper(patcher: Any, now: _Now) -> Callable[..., Tensor]:
    """Called around the UNet: one call of it with a chunk for every part of the step."""
    # Somebody else's wrapper stays, within ours.
    inner = patcher.model_options.get("model_function_wrapper")

    def call(apply_model: Callable[..., Tensor], arguments: dict[str, Any]) -> Tensor:
        x, sigma, inputs = arguments["input"], arguments["timestep"], arguments["c"]
        chunks: list[int] = arguments["cond_or_uncond"]
        pictures = len(x) // len(chunks)

        def run(x: Tensor, sigma: Tensor, inputs: dict[str, Any], chunks: list[int]) -> Tensor:
            if inner is None:
                return apply_model(x, sigma, **inputs)
            asked = {"input": x, "timestep": sigma, "c": inputs, "cond_or_uncond": chunks}
            answer: Tensor = inner(apply_model, asked)
            return answer

        def evaluate(parts: Sequence[Part]) -> Sequence[Tensor]:
            kinds = [_KINDS.index(part.key[0]) for part in parts]
            # A part's control and masks are those of the host's chunk of its kind, or of the only one.
            places = [chunks.index(kind) if kind in chunks else 0 for kind in kinds]
            own = {name: _of_parts(value, places, len(x), pictures) for name, value in inputs.items()}
            own["c_crossattn"] = torch.cat(of_one_length([now.texts[part.key].to(x) for part in parts]))
            own["transformer_options"] = _options(inputs["transformer_options"], kinds, sigma[:pictures])
            with live_parts(patcher.model.diffusion_model, parts, pictures, x.device):
                count = len(parts)
                outputs = run(x[:pictures].repeat(count, 1, 1, 1), sigma[:pictures].repeat(count), own, kinds)
            return outputs.chunk(len(parts))

        if now.step is None:
            return run(x, sigma, inputs, chunks)
        return torch.cat(now.step.answer([_KINDS[kind] for kind in chunks], x[:pictures], evaluate))

    return call


def _text(compiled: list[dict[str, Any]]) -> Tensor:
    text: Tensor = compiled[0]["model_conds"]["c_crossattn"].cond
    return text


def _of_parts(value: Any, places: list[int], rows: int, pictures: int) -> Any:
    """An input of the chunks as the parts have it: tensors with a row for every picture of a chunk, however deep."""
    if isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows:
        return torch.cat([value[place * pictures : (place + 1) * pictures] for place in places])
    if isinstance(value, dict):
        return {name: _of_parts(one, places, rows, pictures) for name, one in value.items()}
    if isinstance(value, list):
        return [_of_parts(one, places, rows, pictures) for one in value]
    return value


def _options(own: dict[str, Any], kinds: list[int], sigmas: Tensor) -> dict[str, Any]:
    """The host's options of a call, with what they say of its chunks."""
    rows = [kind for kind in kinds for _ in range(len(sigmas))]
    return {
        **own,
        "cond_or_uncond": kinds,
        "cond_mark": torch.tensor(rows).to(sigmas),
        "cond_indices": [row for row, kind in enumerate(rows) if kind == 0],
        "uncond_indices": [row for row, kind in enumerate(rows) if kind != 0],
    }
