"""Hybrid guidance in Automatic1111, by its callbacks around each step of a sampler.

Before the UNet runs, the batch of prompt and negative prompt becomes one row for every picture and part; each row is
run with its part's adapter; afterwards the rows are mixed to what the host's own formula then makes the guided sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from hyperdream_core.errors import ConfigError
from hyperdream_core.pipelines.drawing.chunk_adapters import live_parts
from hyperdream_core.pipelines.drawing.guided_step import NULL, PROMPT, GuidedStep, Key, Part

from ..a1111_base import noise_level
from .guided import LEFT_ALONE, Guided, of_one_length

_IDLE = Part((NULL, None), {}, 0.0)
"""a row of the host's that nothing is made of"""


class Run:
    """Guidance while a sampler runs; everything it hooks is given back by `stop`.

    Args:
        p: the host's processing, whose sampler is about to run.
        guided: what to guide with.
        base_text: the prompts that the base is asked, encoded by the host.
    """

    def __init__(self, p: Any, guided: Guided, base_text: Any) -> None:
        from modules import script_callbacks, shared

        self._model, self._sampling, self._guided = shared.sd_model, p, guided
        self._denoiser = p.sampler.model_wrap_cfg
        self._base_text = base_text
        self._unet = self._model.model.diffusion_model
        self._step: GuidedStep | None = None
        self._parts: list[Part] = []
        self._rows: list[Part] = []
        self._next_row = 0
        self._open = ExitStack()
        self._hooks = ExitStack()
        for add, callback in (
            (script_callbacks.on_cfg_denoiser, self.before_unet),
            (script_callbacks.on_cfg_denoised, self.after_unet),
        ):
            add(callback)
            self._hooks.callback(script_callbacks.remove_callbacks_for_function, callback)
        self._hooks.callback(self._unet.register_forward_pre_hook(self._begin_call).remove)
        self._hooks.callback(self._unet.register_forward_hook(self._end_call, always_call=True).remove)

    def stop(self) -> None:
        """Take everything away again."""
        self._hooks.close()
        self._open.close()
        self._guided.guidance.leave_device()

    def before_unet(self, params: Any) -> None:
        """`on_cfg_denoiser`: a row for every picture and part, in place of prompt and negative prompt."""
        from modules import prompt_parser, shared

        self._step, self._rows, self._next_row = None, [], 0
        # A refiner is another model, with layers of its own.
        if params.denoiser is not self._denoiser or shared.sd_model is not self._model:
            return
        pictures = len(params.text_uncond)
        if len(params.text_cond) != pictures:
            self._sampling.comment(LEFT_ALONE)
            return
        latents = params.x[-pictures:]
        t = noise_level(self._denoiser.inner_model, params.sigma[:1])
        step = self._guided.guidance.step(t, self._scale, latents.device)
        _, base_text = prompt_parser.reconstruct_multicond_batch(self._base_text, self._denoiser.step)
        texts: dict[Key, Tensor] = {(PROMPT, 0): params.text_cond, (PROMPT, None): base_text}
        self._parts = _in_hosts_order(step.parts([PROMPT, NULL], latents))
        count = len(self._parts)
        worded = of_one_length([texts.get(part.key, params.text_uncond) for part in self._parts])
        params.text_cond, params.text_uncond = torch.cat(worded[:-1]), worded[-1]
        params.x = latents.repeat(count, 1, 1, 1)
        params.sigma = params.sigma[-pictures:].repeat(count)
        params.image_cond = params.image_cond[-pictures:].repeat(count, *[1] * (params.image_cond.dim() - 1))
        self._step, self._rows = step, [part for part in self._parts for _ in range(pictures)]

    def after_unet(self, params: Any) -> None:
        """`on_cfg_denoised`: the first and the last rows are what the host goes on with; it reads them in place."""
        if self._step is None:
            return
        outputs = dict(zip((part.key for part in self._parts), params.x.chunk(len(self._parts)), strict=True))
        pictures = len(params.x) // len(self._parts)

        def found(parts: Sequence[Part]) -> list[Tensor]:
            return [outputs[part.key] for part in parts]

        if self._next_row < len(self._rows):
            # The host has left the negative prompt out of this step, and goes on with the prompt alone.
            prompt = null = outputs[self._parts[0].key]
        else:
            prompt, null = self._step.answer([PROMPT, NULL], params.x[:pictures], found)
            if self._step.scale != self._scale:
                prompt = null = null + self._step.scale * (prompt - null)
        params.x[:pictures], params.x[-pictures:] = prompt.clone(), null.clone()
        self._step, self._rows = None, []

    @property
    def _scale(self) -> float:
        """What the host multiplies the difference of prompt and negative prompt by."""
        return float(self._sampling.cfg_scale * getattr(self._denoiser, "cond_scale_miltiplier", 1.0))

    def _begin_call(self, unet: Any, arguments: tuple[Any, ...]) -> None:
        # The host may run the rows in one call or in several, always in their order.
        count = len(arguments[0])
        rows = self._rows[self._next_row : self._next_row + count]
        self._next_row += count
        if len(rows) == count:
            self._open.enter_context(live_parts(unet, rows, 1, arguments[0].device))

    def _end_call(self, unet: Any, arguments: Any, output: Any) -> None:
        self._open.close()


def start(p: Any, guided: Guided, base_text: Any) -> Run:
    """Guide the run that is about to begin.

    Raises:
        ConfigError: the host's state leaves nothing to guide.
    """
    from modules import sd_unet

    if getattr(sd_unet, "current_unet", None) is not None:
        raise ConfigError(
            "a replacement for the UNet is active (such as TensorRT), but guidance needs the checkpoint's own; set 'SD "
            "Unet' to None in the settings"
        )
    return Run(p, guided, base_text)


def _in_hosts_order(parts: Sequence[Part]) -> list[Part]:
    """First the person's prompt and last a negative prompt, which the host looks for at the ends and may leave out."""
    prompts = sorted((part for part in parts if part.key[0] == PROMPT), key=lambda part: part.key[1] is None)
    nulls = [part for part in parts if part.key[0] == NULL] or [_IDLE]
    return [*(prompts or [Part((PROMPT, 0), {}, 0.0)]), *nulls]
