"""Hybrid guidance as an accordion below the prompt of txt2img and img2img."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import Any

from hyperdream_core.errors import BaseMismatchError, ConfigError, HyperDreamError

from ..host import is_forge
from ..lora_folder import LoraFolder
from . import axes
from .guided import JOINED_PROMPTS, NOBODY, OWN, PRESETS, Dials, Guided, guided, pasted, without_placeholder
from .refusal import refuse_job, refuse_sampling


class GuidanceAccordion:
    """The base follows the prompt, and the identity brings the person; switched off, nothing of it is there.

    What a host's class of scripts adds is given in `extension`; the hosts make one for each tab.
    """

    loras: LoraFolder
    always_visible: Any
    """the host's mark for scripts that are no choice of a list"""

    def __init__(self) -> None:
        super().__init__()
        self._guided: Guided | None = None
        self._run: Any = None

    def title(self) -> str:
        return "HyperDream guidance"

    def show(self, is_img2img: bool) -> Any:
        return self.always_visible

    def ui(self, is_img2img: bool) -> list[Any]:
        """The dials; their values come to the functions below in this order."""
        import gradio as gr
        from modules.ui_common import create_refresh_button
        from modules.ui_components import InputAccordion

        tab = "img2img" if is_img2img else "txt2img"
        with InputAccordion(False, label=self.title(), elem_id=f"hyperdream_guidance_{tab}") as enabled:
            gr.HTML(
                "The base follows the prompt, and the identity brings the person; no &lt;lora:...&gt; is needed. "
                "-1 is the preset's own."
            )
            with gr.Row():
                identity = gr.Dropdown(
                    self._names(), value=NOBODY, label="Identity", elem_id=f"hyperdream_guidance_identity_{tab}"
                )
                create_refresh_button(
                    identity, lambda: None, lambda: {"choices": self._names()}, f"hyperdream_guidance_refresh_{tab}"
                )
                guidance = gr.Dropdown(
                    list(PRESETS), value=PRESETS[0], label="Guidance", elem_id=f"hyperdream_guidance_preset_{tab}"
                )
            with gr.Row():
                base_scale = gr.Slider(OWN, 30, value=OWN, step=0.5, label="CFG of the base")
                subject_scale = gr.Slider(OWN, 30, value=OWN, step=0.1, label="CFG of the person")
                strength = gr.Slider(-2, 2, value=1, step=0.05, label="Strength of the identity")
            # The list is as old as the page: who has been made since is in it once guidance is switched on.
            for listen in (enabled.change, identity.focus):
                listen(fn=lambda: gr.update(choices=self._names()), inputs=[], outputs=[identity])
            schedule = gr.Textbox(
                label="Schedule",
                placeholder="default, or 0-0.5:1, 0.5-1:0",
                info="how they change with the noise, 0 clean to 1 pure noise; empty: always the same",
            )
        dials = {
            "identity": identity,
            "guidance": guidance,
            "base_scale": base_scale,
            "subject_scale": subject_scale,
            "schedule": schedule,
            "strength": strength,
        }
        self.infotext_fields = [
            (enabled, lambda fields: pasted(fields) is not None),
            *((component, _from_infotext(name)) for name, component in dials.items()),
        ]
        return [enabled, *dials.values()]

    def process(self, p: Any, enabled: bool = False, *values: Any) -> None:
        """Before a job: its prompts name the person, and its infotext says how it is made."""
        self._stop()
        on_axes = axes.chosen(p)
        if not enabled and not on_axes:
            return
        if on_axes.get("identity") == NOBODY:
            # A cell of a plot to compare with.
            p.all_prompts = [without_placeholder(prompt) for prompt in p.all_prompts]
            return
        try:
            dials = replace(_dials(values), **on_axes)
            if dials.identity == NOBODY:
                raise ConfigError("it is on, but no identity is chosen; choose one, or switch it off")
            if any(re.search(r"\bAND\b", prompt) for prompt in p.all_prompts):
                raise ConfigError(JOINED_PROMPTS)
            self._guided = guided(dials, self.loras.read(dials.identity), _unet(p))
        except HyperDreamError as error:
            refuse_job(p, error)
            return
        p.all_prompts = [self._guided.worded(prompt) for prompt in p.all_prompts]
        p.main_prompt = self._guided.worded(getattr(p, "main_prompt", None) or p.all_prompts[0])
        if getattr(p, "all_hr_prompts", None):
            p.all_hr_prompts = [self._guided.worded(prompt) for prompt in p.all_hr_prompts]
        p.extra_generation_params.update(dials.infotext())

    def process_before_every_sampling(self, p: Any, *values: Any, **tensors: Any) -> None:
        """Before each run of a sampler, hires passes among them."""
        if self._guided is None:
            return
        self._stop_run()
        try:
            if tensors.get("uc") is None:
                raise ConfigError(
                    "it needs the negative prompt, which a CFG scale of 1 leaves out; raise the CFG scale a bit"
                )
            base_text = _encoded(p, self._guided)
            if is_forge():
                from . import forge

                forge.start(p, self._guided, base_text)
            else:
                from . import a1111

                self._run = a1111.start(p, self._guided, base_text)
        except HyperDreamError as error:
            refuse_sampling(p, error)

    def postprocess(self, p: Any, processed: Any, *values: Any) -> None:
        """After a job."""
        self._stop()

    def _stop(self) -> None:
        self._stop_run()
        self._guided = None

    def _stop_run(self) -> None:
        if self._run is not None:
            self._run.stop()
            self._run = None

    def _names(self) -> list[str]:
        return guidable(self.loras)


def guidable(loras: LoraFolder) -> list[str]:
    """The identities that guidance can take, newest first, after the word for nobody."""
    return [NOBODY, *(entry.name for entry in loras.entries() if entry.family in ("sd15", "sd2"))]


def _dials(values: tuple[Any, ...]) -> Dials:
    """The accordion's values as dials; the host's API passes on whatever it is given.

    Raises:
        ConfigError: one is not of its kind.
    """
    names = [field.name for field in fields(Dials)]
    try:
        given = dict(zip(names, values, strict=True))
        numbers: dict[str, Any] = {name: float(given[name]) for name in ("base_scale", "subject_scale", "strength")}
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"it takes {', '.join(names)}, of which the scales and the strength are numbers") from error
    texts: dict[str, Any] = {
        "identity": str(given["identity"] or NOBODY),
        "guidance": str(given["guidance"] or PRESETS[0]),
    }
    return Dials(**texts, schedule=str(given["schedule"] or ""), **numbers)


def _from_infotext(name: str) -> Any:
    def value(fields: dict[str, str]) -> Any:
        # None leaves what is there.
        return getattr(pasted(fields), name, None)

    return value


def _unet(p: Any) -> Any:
    try:
        return p.sd_model.forge_objects.unet.model.diffusion_model if is_forge() else p.sd_model.model.diffusion_model
    except AttributeError as error:
        raise BaseMismatchError(
            "the loaded checkpoint has no UNet that can be guided; load a Stable Diffusion 1.x or 2.x"
        ) from error


def _encoded(p: Any, about: Guided) -> Any:
    """The base's prompts as the host encodes its own, with their changes from step to step."""
    from modules import devices, prompt_parser, shared

    is_hires = getattr(p, "is_hr_pass", False)
    prompts = [about.of_base(prompt) for prompt in (p.hr_prompts if is_hires else p.prompts)]
    with devices.autocast():
        return prompt_parser.get_multicond_learned_conditioning(
            shared.sd_model,
            prompt_parser.SdConditioning(prompts, width=p.width, height=p.height),
            p.firstpass_steps,
            (p.hr_second_pass_steps or p.steps) if is_hires else None,
            shared.opts.use_old_scheduling,
        )
