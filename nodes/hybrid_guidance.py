"""Hybrid Guidance: the base's composition and the person's likeness, mixed while sampling."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..hyperdream_core.errors import ConfigError
from ..hyperdream_core.formats.adapter_file import Identity
from ..hyperdream_core.pipelines.guide import GuidanceConfig
from . import host
from .guided_subjects import ConnectedSubject, Prompts, guided
from .lora_files import read_lora_file
from .wires import IDENTITY

NO_LORA = "none"
OWN = -1.0
"""a dial's setting for what the preset takes by itself"""


class HybridGuidance(io.ComfyNode):
    """A MODEL that is sampled as a mix of the base and one person."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperDreamHybridGuidance",
            display_name="Hybrid Guidance",
            category="HyperDream",
            description="Lets the base follow the prompt and the identity bring the person, in one call of the UNet "
            "per step. Works with an identity or any LoRA, in KSampler, SamplerCustom and under guiders.",
            inputs=[*wires(), *prompt_inputs(), *dial_inputs(PRESETS), lora_input(), *identity_input()],
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
        with host.ordinary_tensors():
            subject = the_subject(identity, lora, model, clip)
            config = guidance_config(guidance, base_scale, subject_scale, schedule, strength)
            return output(model, clip, [subject], Prompts(prompt, negative_prompt, base_prompt), config)


class HybridGuidanceAdvanced(io.ComfyNode):
    """The same with every dial."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        shares = [
            io.Float.Input("null_strength", default=OWN, min=OWN, max=1.0, step=0.05, tooltip=_NULL_STRENGTH),
            io.Float.Input("rescale", default=0.0, min=0.0, max=1.0, step=0.05, tooltip=_RESCALE),
            io.Float.Input("rank_share", default=1.0, min=0.0, max=1.0, step=0.05, tooltip=_RANK_SHARE),
            io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01, tooltip=_START),
            io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01, tooltip=_END),
            io.String.Input("weights", default="", tooltip=_WEIGHTS),
        ]
        return io.Schema(
            node_id="HyperDreamHybridGuidanceAdvanced",
            display_name="Hybrid Guidance (Advanced)",
            category="HyperDream/advanced",
            description="Hybrid Guidance with weights of your own, guidance away from a neutral identity, a rank that "
            "shrinks with noise, a start and an end, and rescaled contrast.",
            inputs=[
                *wires(),
                *prompt_inputs(),
                *dial_inputs([*PRESETS, "reference-null", "weights"]),
                *shares,
                lora_input(),
                *identity_input(),
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
        if start_percent >= end_percent:
            raise ConfigError(
                f"start_percent is {start_percent:g} and end_percent {end_percent:g}, but the start must come before "
                "the end; raise end_percent"
            )
        null_strength = shares.pop("null_strength")
        more = {
            **shares,
            "null_strength": None if null_strength == OWN else null_strength,
            # Sampling begins in noise, at level 1.
            "active": (1 - end_percent, 1 - start_percent),
            "branch_weights": _numbers(weights),
        }
        with host.ordinary_tensors():
            subject = the_subject(identity, lora, model, clip, neutral)
            config = guidance_config(guidance, base_scale, subject_scale, schedule, strength, **more)
            return output(model, clip, [subject], Prompts(prompt, negative_prompt, base_prompt), config)


PRESETS = ["hybrid", "mix", "blend", "base-null", "plain"]

_NULL_STRENGTH = (
    "How much of the identity the negative side has, 0 to 1. -1 is the preset's own: all in plain, blend and "
    "reference-null, none elsewhere."
)
_RESCALE = "Brings back the contrast that strong guidance changes; 0.7 mends washed-out or glaring pictures."
_RANK_SHARE = (
    "Share of the adapter's rank that acts in pure noise; it grows to all of it as noise goes. 1 uses all of it "
    "always; of use from rank 4 on."
)
_START = "Where in sampling the identity sets in: 0 is the first step. Later leaves the composition to the base."
_END = "Where in sampling it ends: 1 is the last step. Earlier leaves fine texture to the base."
_WEIGHTS = (
    "For guidance 'weights': four numbers that sum to 1, of the base without and with the prompt, and of the person "
    "without and with it, such as -4, 2, 0, 3."
)
_NEUTRAL = "For guidance 'reference-null': the identity predicted from a plain grey picture."


def wires() -> list[Any]:
    """MODEL and CLIP."""
    return [
        io.Model.Input("model", tooltip="The base: a checkpoint straight from its loader, without the identity."),
        io.Clip.Input("clip", tooltip="Its text encoder, straight from the loader too."),
    ]


def prompt_inputs() -> list[Any]:
    """What to draw."""
    return [
        io.String.Input(
            "prompt",
            multiline=True,
            dynamic_prompts=True,
            default="a [V] face, smiling",
            tooltip="What to draw. [V] stands for the person, as in 'a [V] face, at the beach'.",
        ),
        io.String.Input(
            "negative_prompt",
            multiline=True,
            dynamic_prompts=True,
            default="",
            tooltip="What to lead away from; empty for nothing in particular.",
        ),
        io.String.Input(
            "base_prompt",
            multiline=True,
            dynamic_prompts=True,
            default="",
            tooltip="What the base is asked; empty asks it for the prompt without the person's word.",
        ),
    ]


def dial_inputs(presets: list[str]) -> list[Any]:
    """How much base and person lead."""
    return [
        io.Combo.Input(
            "guidance",
            options=presets,
            default=presets[0],
            tooltip="hybrid: the base leads at base_scale, and the person at subject_scale on top. mix: subject_scale "
            "is the person's share, 0 to 1. blend: between the base's guidance and plain. base-null: plain, but away "
            "from the base. plain: as any LoRA is sampled.",
        ),
        io.Float.Input(
            "base_scale",
            default=OWN,
            min=OWN,
            max=30.0,
            step=0.1,
            tooltip="How far the base leads in hybrid, mix and blend; -1 is the sampler's cfg.",
        ),
        io.Float.Input(
            "subject_scale",
            default=OWN,
            min=OWN,
            max=30.0,
            step=0.1,
            tooltip="How far the person leads; 0 is the base alone. -1 is the sampler's cfg in hybrid, and 1, all of "
            "it, in mix and blend.",
        ),
        io.String.Input(
            "schedule",
            default="",
            tooltip="Factors on the scales over the noise, 0 clean to 1 noise: 'default' lets the prompt lead where "
            "the layout is settled; bands such as 0-0.5:1, 0.5-1:0, or points of a curve such as 0=1, 1=0. Empty: "
            "always the same.",
        ),
        io.Float.Input(
            "strength",
            default=1.0,
            min=-4.0,
            max=4.0,
            step=0.05,
            tooltip="How much of the identity or LoRA: 1 is as it was made, 0 is the base alone.",
        ),
    ]


def lora_input() -> Any:
    """Any LoRA file."""
    return io.Combo.Input(
        "lora",
        options=[NO_LORA, *host.lora_names()],
        default=NO_LORA,
        tooltip="A LoRA file instead of an identity; its trigger word belongs into the prompt.",
    )


def identity_input() -> list[Any]:
    """Of this pack."""
    return [IDENTITY.Input("identity", optional=True, tooltip="From Predict, Polish, Load or Blend.")]


def outputs() -> list[Any]:
    """What a sampler takes."""
    return [
        io.Model.Output(tooltip="The MODEL to sample with; the one that came in stays as it is."),
        io.Conditioning.Output(display_name="positive", tooltip="The prompt in both wordings, for the sampler."),
        io.Conditioning.Output(display_name="negative", tooltip="The negative prompt, for the sampler."),
        io.String.Output(display_name="text", tooltip="The prompts of person and base, as they were encoded."),
    ]


def the_subject(
    identity: Identity | None, lora: str, model: Any, clip: Any, neutral: Identity | None = None
) -> ConnectedSubject:
    """Whoever was connected or chosen.

    Raises:
        ConfigError: nobody, or both.
    """
    if (identity is None) == (lora == NO_LORA):
        both = "both an identity and a LoRA" if identity is not None else "neither an identity nor a LoRA"
        raise ConfigError(f"Hybrid Guidance was given {both}, expected one; connect an identity, or choose a LoRA")
    if identity is not None:
        return ConnectedSubject(identity, neutral=neutral)
    return ConnectedSubject(read_lora_file(host.stored_file(host.LORAS, lora), model, clip), neutral=neutral)


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


def output(
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
