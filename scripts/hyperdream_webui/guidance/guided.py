"""Hybrid guidance in both hosts: what is asked for, and what the samplers need of it; knows neither host."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hyperdream_core.bases import UNET, detect_family
from hyperdream_core.bases.keys import to_ldm
from hyperdream_core.errors import BaseMismatchError, ConfigError
from hyperdream_core.identity import Identity
from hyperdream_core.pipelines.drawing.guidance_config import GuidanceConfig
from hyperdream_core.pipelines.drawing.guided_step import Guidance
from hyperdream_core.pipelines.drawing.subjects import Subject, resolve
from hyperdream_core.pipelines.prompts import PLACEHOLDER, insert_identifier, names_subject, without_identifier

from ..lora_folder import STOCK

PRESETS = ("hybrid", "mix", "blend", "base-null", "plain")
OWN = -1.0
"""a dial's setting for what the preset takes by itself"""
NOBODY = "none"
MOST_STRENGTH = 10.0
LEFT_ALONE = (
    "HyperDream guidance left this picture alone: prompts that are joined by AND are not mixed; write one prompt"
)
JOINED_PROMPTS = "it does not mix prompts that are joined by AND; write one prompt, or switch it off"
_FIELDS = {
    "identity": "HyperDream identity",
    "guidance": "HyperDream guidance",
    "base_scale": "HyperDream base scale",
    "subject_scale": "HyperDream subject scale",
    "schedule": "HyperDream schedule",
    "strength": "HyperDream strength",
}


@dataclass(frozen=True, kw_only=True)
class Dials:
    """What the user has set."""

    identity: str = NOBODY
    """its name in the library"""
    guidance: str = PRESETS[0]
    base_scale: float = OWN
    subject_scale: float = OWN
    schedule: str = ""
    strength: float = 1.0

    def config(self) -> GuidanceConfig:
        """The core's settings; at a dial that is left alone, its own.

        Raises:
            ConfigError: a setting that means nothing, or does nothing in this preset.
        """
        if not (math.isfinite(self.strength) and abs(self.strength) <= MOST_STRENGTH):
            raise ConfigError(
                f"the strength of the identity must lie in -{MOST_STRENGTH:g}..{MOST_STRENGTH:g}, got "
                f"{self.strength:g}; 1 is as trained"
            )
        return GuidanceConfig(
            guidance=self.guidance,  # type: ignore[arg-type]
            base_scale=None if self.base_scale == OWN else self.base_scale,
            subject_scale=None if self.subject_scale == OWN else self.subject_scale,
            schedule=self.schedule.strip(),
            strength=self.strength,
        )

    def infotext(self) -> dict[str, str | float]:
        """What a picture says of its making; dials that were left alone are left out."""
        plain = Dials()
        set_by_user = {name for name in _FIELDS if getattr(self, name) != getattr(plain, name)}
        return {
            _FIELDS[name]: getattr(self, name) for name in _FIELDS if name in {"identity", "guidance"} | set_by_user
        }


def pasted(fields: dict[str, str]) -> Dials | None:
    """The dials that a picture was made with, from the fields of its infotext; None if it was made without.

    Raises:
        ValueError: a field is no number that should be one.
    """
    if _FIELDS["identity"] not in fields:
        return None
    given: dict[str, Any] = {name: fields[label] for name, label in _FIELDS.items() if label in fields}
    given |= {name: float(given[name]) for name in ("base_scale", "subject_scale", "strength") if name in given}
    return Dials(**given)


@dataclass(frozen=True, eq=False)
class Guided:
    """An identity ready to guide with, and its words."""

    identity: Identity
    name: str
    guidance: Guidance

    def worded(self, prompt: str) -> str:
        """A prompt that names the person, without the tag that would merge the same identity into the weights."""
        stem = re.escape(Path(self.name).stem)
        prompt = re.sub(rf"\s*<lora:{stem}(?:{re.escape(STOCK)})?(?::[^>]*)?>,?", "", prompt).strip()
        identifier, noun = self.identity.identifier, self.identity.class_noun
        if names_subject(prompt, identifier):
            return insert_identifier(prompt, identifier, noun)
        # Other networks' tags hold words, too.
        tags = re.findall(r"<[^<>]*>", prompt)
        text = re.sub(r"<[^<>]*>", "", prompt).strip()
        return " ".join([insert_identifier(text, identifier, noun, missing="insert"), *tags])

    def of_base(self, prompt: str) -> str:
        """The same prompt as the base alone is asked."""
        return without_identifier(prompt, self.identity.identifier)


def guided(dials: Dials, identity: Identity, unet: nn.Module) -> Guided:
    """An identity and how it takes part, for the UNet that is loaded.

    Raises:
        BaseMismatchError: the identity, or this kind of guidance, is not for this checkpoint.
        ConfigError: settings that contradict each other.
    """
    family = detect_family({name: tuple(parameter.shape) for name, parameter in unet.named_parameters()})
    if len(family.text_encoders) > 1:
        raise BaseMismatchError(
            f"the loaded checkpoint is a {family.title}, but guidance is there for Stable Diffusion 1.x and 2.x; load "
            "one of those, or use ComfyUI"
        )
    if any(family.part_of(name) != UNET for name in identity.coefficients):
        raise ConfigError(
            f"{dials.identity} also changes the text encoder, which guidance cannot mix; write it into the prompt as "
            "a <lora:...> instead"
        )
    config = dials.config()
    subject = resolve(family, Subject(adapter=identity), config, 1)[0]
    pairs = tuple({to_ldm(name, family): pair for name, pair in one.items()} for one in subject.pairs)
    return Guided(identity, dials.identity, Guidance(config, [replace(subject, pairs=pairs)]))


def without_placeholder(prompt: str) -> str:
    """A prompt for nobody: `[V]` is left out."""
    return re.sub(rf"{re.escape(PLACEHOLDER)}\s*", "", prompt, flags=re.IGNORECASE).strip()


def of_one_length(texts: Sequence[Tensor]) -> list[Tensor]:
    """Texts (b, n, d) with as many tokens n each, by repetition, which attention does not notice."""
    length = math.lcm(*(text.shape[1] for text in texts))
    return [text.repeat(1, length // text.shape[1], 1) for text in texts]
