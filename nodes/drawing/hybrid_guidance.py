"""Hybrid Guidance: the base's composition and the person's likeness, mixed while sampling."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ...hyperdream_core.errors import ConfigError
from ...hyperdream_core.identity import Identity
from ...hyperdream_core.pipelines.drawing.guidance_config import GuidanceConfig
from ..dials import (
    check_range,
    choice,
    number_dial,
    prompt_box,
    range_dials,
    share_dial,
    strength_dial,
    subjects_prompt_box,
)
from ..host import folders, run
from ..wires import IDENTITY
from .guided_subjects import ConnectedSubject, Prompts, guided
from .lora_files import read_lora_file

PRESETS = ["hybrid", "mix", "blend", "base-null", "plain"]
NO_LORA = "none"
OWN = -1.0
"""a dial's setting for what the preset takes by itself"""

_NULL_STRENGTH = (
    "How much of the identity acts on the negative prompt, 0 to 1. -1 is automatic: all of it in "
    "plain, blend and reference-null, none elsewhere."
)
_RESCALE = "Restores the contrast that strong CFG changes; 0.7 repairs washed-out or glaring pictures."
_RANK_SHARE = (
    "Share of the identity's rank that acts in pure noise, growing to all of it as the noise "
    "goes. 1 always uses all of it; useful from rank 4 on."
)
_WEIGHTS = (
    "For guidance 'weights': four numbers that sum to 1, of the base without and with the prompt, and of the person "
    "without and with it, such as -4, 2, 0, 3."
)
_NEUTRAL = "For guidance 'reference-null': the identity predicted from a plain grey picture."


class HybridGuidance(io.ComfyNode):
    """A MODEL that is sampled as a mix of the base and one person."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperDreamHybridGuidance",
            display_name="Hybrid Guidance",
            category="HyperDream",
            description="The base follows the prompt and the identity brings the person, in one UNet call per "
            "step. Works with an identity or any LoRA, in KSampler, SamplerCustom and with guiders.",
            inputs=[*base_inputs(), *prompt_inputs(), *dial_inputs(PRESETS), lora_input(), identity_input()],
            outputs=outputs(),
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        prompt: str,
        negative_prompt: str,
        base_prompt: str,
        guidance: str,
        base_scale: float,
        subject_scale: float,
        schedule: str,
        strength: float,
        lora: str,
        identity: Identity | None = None,
    ) -> io.NodeOutput:
        with run.ordinary_tensors():
            subject = the_subject(identity, lora, model)
            config = guidance_config(guidance, base_scale, subject_scale, schedule, strength)
            return guided_output(model, clip, [subject], Prompts(prompt, negative_prompt, base_prompt), config)


class HybridGuidanceAdvanced(io.ComfyNode):
    """The same with every dial."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        shares = [
            number_dial("null_strength", _NULL_STRENGTH, default=OWN, limits=(OWN, 1.0), step=0.05),
            share_dial("rescale", _RESCALE, default=0.0),
            share_dial("rank_share", _RANK_SHARE, default=1.0),
            *range_dials(),
            io.String.Input("weights", default="", tooltip=_WEIGHTS),
        ]
        return io.Schema(
            node_id="HyperDreamHybridGuidanceAdvanced",
            display_name="Hybrid Guidance (Advanced)",
            category="HyperDream/advanced",
            description="Hybrid Guidance with weights of your own, guidance away from a neutral identity, a rank that "
            "shrinks with noise, a start and an end, and rescaled contrast.",
            inputs=[
                *base_inputs(),
                *prompt_inputs(),
                *dial_inputs([*PRESETS, "reference-null", "weights"]),
                *shares,
                lora_input(),
                identity_input(),
                IDENTITY.Input("neutral", optional=True, tooltip=_NEUTRAL),
            ],
            outputs=outputs(),
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        prompt: str,
        negative_prompt: str,
        base_prompt: str,
        guidance: str,
        base_scale: float,
        subject_scale: float,
        schedule: str,
        strength: float,
        lora: str,
        weights: str,
        start_percent: float,
        end_percent: float,
        identity: Identity | None = None,
        neutral: Identity | None = None,
        **shares: float,
    ) -> io.NodeOutput:
        check_range(start_percent, end_percent)
        null_strength = shares.pop("null_strength")
        more = {
            **shares,
            "null_strength": None if null_strength == OWN else null_strength,
            # Sampling begins in noise, at level 1.
            "active": (1 - end_percent, 1 - start_percent),
            "branch_weights": _numbers(weights),
        }
        with run.ordinary_tensors():
            subject = the_subject(identity, lora, model, neutral)
            config = guidance_config(guidance, base_scale, subject_scale, schedule, strength, **more)
            return guided_output(model, clip, [subject], Prompts(prompt, negative_prompt, base_prompt), config)


def base_inputs() -> list[Any]:
    """MODEL and CLIP of the base."""
    return [
        io.Model.Input("model", tooltip="The base: a checkpoint straight from its loader, without the identity."),
        io.Clip.Input("clip", tooltip="Its text encoder, straight from the loader too."),
    ]


def prompt_inputs() -> list[Any]:
    """What to draw."""
    return [
        subjects_prompt_box("prompt"),
        prompt_box("negative_prompt", "What to steer away from; may be empty."),
        prompt_box("base_prompt", "The base's own prompt; empty uses the prompt without the trigger word."),
    ]


def dial_inputs(presets: list[str]) -> list[Any]:
    """How much base and person lead."""
    return [
        choice(
            "guidance",
            "How base and person are mixed. hybrid: the base leads, and the person comes on top. mix: "
            "both lead, each by its share. blend: anything between the base alone and plain. "
            "base-null: like plain, but what tells the person from the base counts more. plain: like any "
            "LoRA.",
            presets,
        ),
        number_dial(
            "base_scale",
            "How closely the base follows the prompt in hybrid, mix and blend, as cfg says it in a "
            "sampler. -1 is automatic: the sampler's cfg.",
            default=OWN,
            limits=(OWN, 30.0),
            step=0.1,
        ),
        number_dial(
            "subject_scale",
            "How strongly the person leads in hybrid; the person's share, 0 to 1, in mix and blend. 0 "
            "is the base alone. -1 is automatic: the sampler's cfg in hybrid, all of the person in "
            "mix and blend.",
            default=OWN,
            limits=(OWN, 30.0),
            step=0.1,
        ),
        io.String.Input(
            "schedule",
            default="",
            tooltip="How the scales change with the noise, from 0 (clean) to 1 (pure noise): 'default' lets "
            "the prompt lead where the layout is settled; bands such as 0-0.5:1, 0.5-1:0, or points "
            "of a curve such as 0=1, 1=0. Empty: always the same.",
        ),
        strength_dial("strength", "How much of the identity or LoRA: 1 is as it was made, 0 is the base alone."),
    ]


def lora_input() -> Any:
    """Any LoRA file."""
    return choice(
        "lora",
        "A LoRA file instead of an identity; put its trigger word in the prompt.",
        [NO_LORA, *folders.lora_names()],
    )


def identity_input() -> Any:
    """An identity of this pack."""
    return IDENTITY.Input("identity", optional=True, tooltip="From Predict, Polish, Load or Blend.")


def outputs() -> list[Any]:
    """What a sampler takes."""
    return [
        io.Model.Output(tooltip="The MODEL to sample with; the input is not changed."),
        io.Conditioning.Output(
            display_name="positive", tooltip="The prompt for the base and for the person; connect it to the sampler."
        ),
        io.Conditioning.Output(display_name="negative", tooltip="The negative prompt, for the sampler."),
        io.String.Output(display_name="text", tooltip="The prompts of person and base, as they were encoded."),
    ]


def the_subject(identity: Identity | None, lora: str, model: Any, neutral: Identity | None = None) -> ConnectedSubject:
    """Whoever was connected or chosen.

    Raises:
        ConfigError: nobody, or both.
    """
    if (identity is None) == (lora == NO_LORA):
        both = "both an identity and a LoRA" if identity is not None else "neither an identity nor a LoRA"
        raise ConfigError(f"Hybrid Guidance was given {both}, expected one; connect an identity, or choose a LoRA")
    if identity is not None:
        return ConnectedSubject(identity, neutral=neutral)
    return ConnectedSubject(read_lora_file(folders.stored_file(folders.LORAS, lora), model), neutral=neutral)


def guidance_config(
    guidance: str, base_scale: float, subject_scale: float, schedule: str, strength: float, **more: Any
) -> GuidanceConfig:
    """The core's settings; at a dial that is left alone, its own."""
    return GuidanceConfig(
        guidance=guidance,  # type: ignore[arg-type]
        base_scale=None if base_scale == OWN else base_scale,
        subject_scale=None if subject_scale == OWN else subject_scale,
        schedule=schedule.strip(),
        strength=strength,
        **more,
    )


def guided_output(
    model: Any, clip: Any, subjects: list[ConnectedSubject], prompts: Prompts, config: GuidanceConfig
) -> io.NodeOutput:
    """The node's answer."""
    made = guided(model, clip, subjects, prompts, config)
    return io.NodeOutput(made.model, made.positive, made.negative, made.said, ui=ui.PreviewText(made.said))


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.replace(";", ",").split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(f"weights {text!r} are not numbers; write four, such as -4, 2, 0, 3") from error
