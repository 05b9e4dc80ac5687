"""Guided sampling from a plain MODEL: wrappers that any sampler and any guider of ComfyUI calls.

Seen in 0.8.0 and 0.28.0. A run is wrapped to give every wording of the prompts the treatment that ComfyUI gives its
own, a step to set the scale, a batch of predictions to take more or fewer of them, and the UNet to adapt each chunk.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.patcher_extension
import comfy.samplers
from torch import Tensor

from ...hyperdream_core.errors import ConfigError
from ...hyperdream_core.pipelines.drawing.chunk_adapters import live_parts
from ...hyperdream_core.pipelines.drawing.guided_step import NULL, PROMPT, Guidance, GuidedStep, Key, Part
from .guided_prompts import worded
from .models import level_in
from .patches import options_of_call

_KEY = "hyperdream_guidance"
_ROLE = "hyperdream_role"
_ENDS = {"positive": PROMPT, "negative": NULL}


@dataclass(frozen=True, eq=False)
class _Now:
    """What travels down to the UNet among the options of a call."""

    step: GuidedStep
    conds: dict[str, Any]
    parts: tuple[Part, ...] = ()
    """by the number that a chunk of the batch carries"""


def with_guidance(model: Any, guidance: Guidance) -> Any:
    """A clone of the MODEL that is sampled with guidance."""
    clone = model.clone()
    wrappers = _Wrappers(guidance)
    kinds = comfy.patcher_extension.WrappersMP
    for kind, wrapper in (
        (kinds.OUTER_SAMPLE, wrappers.run),
        (kinds.PREDICT_NOISE, wrappers.predict),
        (kinds.CALC_COND_BATCH, wrappers.evaluate),
        (kinds.DIFFUSION_MODEL, wrappers.call_unet),
    ):
        if comfy.patcher_extension.get_wrappers_with_key(kind, _KEY, clone.model_options, is_model_options=True):
            raise ConfigError(
                "the MODEL already has a guidance of HyperDream, and two of them cannot share one UNet; connect it "
                "straight from its loader, or use Regional Identities for several people"
            )
        clone.add_wrapper_with_key(kind, _KEY, wrapper)
    return clone


class _Wrappers:
    def __init__(self, guidance: Guidance) -> None:
        self._guidance = guidance

    def run(self, executor: Any, *arguments: Any, **named: Any) -> Any:
        """Around a whole run: every wording becomes a conditioning of the guider, which prepares all it has."""
        conds, count = executor.class_obj.conds, len(self._guidance.subjects)
        for end, kind in _ENDS.items():
            for subject in (None, *range(count)) if end in conds else ():
                entries = [worded(entry, subject, count) for entry in conds[end]]
                # Caches of other packs tell chunks apart by these.
                conds[_name((kind, subject))] = [{**entry, "uuid": uuid.uuid4()} for entry in entries]
            for entry in conds.get(end, ()):
                entry[_ROLE] = kind
        try:
            return executor(*arguments, **named)
        finally:
            self._guidance.leave_device()

    def predict(
        self, executor: Any, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: Any = None
    ) -> Tensor:
        """Around a step: the weights at this noise level, and the scale that goes with them."""
        guider = executor.class_obj
        t = level_in(guider.inner_model.model_sampling, timestep[:1])
        step = self._guidance.step(t, float(guider.cfg), x.device)
        _check_ends(guider, step)
        options = _with(model_options or {}, _Now(step, guider.conds))
        if type(guider).predict_noise is not comfy.samplers.CFGGuider.predict_noise:
            # A guider with a formula of its own; the weights here stand for the whole of it.
            negative, positive = guider.conds.get("negative"), guider.conds["positive"]
            guided: Tensor = comfy.samplers.sampling_function(
                guider.inner_model, x, timestep, negative, positive, step.scale, model_options=options, seed=seed
            )
            return guided
        own, guider.cfg = guider.cfg, step.scale
        try:
            plain: Tensor = executor(x, timestep, options, seed)
            return plain
        finally:
            guider.cfg = own

    def evaluate(
        self,
        executor: Callable[..., Sequence[Tensor]],
        model: Any,
        conds: Sequence[Any],
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
    ) -> list[Tensor]:
        """Around a batch of predictions: the ones that the weights need, in one call."""
        now: _Now | None = model_options.get("transformer_options", {}).get(_KEY)
        if now is None:
            raise ConfigError(
                "this sampler passes ComfyUI's guiders by, and Hybrid Guidance works through them; use KSampler, "
                "SamplerCustom or SamplerCustomAdvanced"
            )
        step, by_name = now.step, now.conds
        strangers = [cond for cond in conds if cond is not None and _role(cond) is None]

        def run(parts: Sequence[Part]) -> Sequence[Tensor]:
            ordered = _in_hosts_order(parts)
            places: list[Part | None] = [*ordered, *(Part((PROMPT, None), {}, 0.0) for _ in strangers)]
            asked = [None if one is None else by_name[_name(one.key)] for one in ordered]
            empty = Part((NULL, None), {}, 0.0)
            inside = _Now(step, by_name, tuple(one or empty for one in places))
            found = executor(model, [*asked, *strangers], x, timestep, _with(model_options, inside))
            others.extend(found[len(ordered) :])
            return [found[ordered.index(part)] for part in parts]

        others: list[Tensor] = []
        answers = step.answer([None if cond is None else _role(cond) for cond in conds], x, run)
        if strangers and not others:
            run(())
        left = iter(others)
        return [
            next(left) if cond is not None and _role(cond) is None else answer
            for cond, answer in zip(conds, answers, strict=True)
        ]

    def call_unet(self, executor: Any, x: Tensor, *arguments: Any, **named: Any) -> Any:
        """Around a call of the UNet: each chunk of the batch with its part's adapter."""
        options = options_of_call(arguments, named, _KEY)
        now: _Now | None = options.get(_KEY)
        if now is None:
            return executor(x, *arguments, **named)
        parts = [now.parts[index] for index in options["cond_or_uncond"]]
        # The executor knows which UNet really runs: ComfyUI may have put another copy in place.
        with live_parts(executor.class_obj, parts, len(x) // len(parts), x.device):
            return executor(x, *arguments, **named)


def _name(key: Key) -> str:
    kind, subject = key
    return f"hyperdream {kind} of {'the base' if subject is None else f'subject {subject + 1}'}"


def _role(cond: Sequence[dict[str, Any]]) -> str | None:
    return cond[0].get(_ROLE) if cond else None


def _with(model_options: dict[str, Any], now: _Now) -> dict[str, Any]:
    return {**model_options, "transformer_options": {**model_options.get("transformer_options", {}), _KEY: now}}


def _in_hosts_order(parts: Sequence[Part]) -> list[Part | None]:
    """First a prompt's part and second a negative prompt's, as other packs expect of chunks 0 and 1."""
    if not parts:
        return []
    first = next((part for part in parts if part.key[0] == PROMPT), None)
    second = next((part for part in parts if part.key[0] == NULL), None)
    return [first, second, *(part for part in parts if part is not first and part is not second)]


def _check_ends(guider: Any, step: GuidedStep) -> None:
    if "positive" not in guider.conds:
        raise ConfigError(
            f"{type(guider).__name__} has no positive prompt for Hybrid Guidance to work on; use KSampler, "
            "SamplerCustom or CFGGuider"
        )
    if step.needs_null and "negative" not in guider.conds:
        raise ConfigError(
            f"{type(guider).__name__} has no negative prompt, and this guidance leads away from one; use CFGGuider, or "
            "set base_scale and subject_scale to 1"
        )
