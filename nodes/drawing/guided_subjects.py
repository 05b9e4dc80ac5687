"""From what people connect to a guidance node, to the subjects, prompts and MODEL that are sampled with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ...hyperdream_core.bases import UNET, BaseFamily
from ...hyperdream_core.bases.keys import to_ldm
from ...hyperdream_core.errors import ConfigError
from ...hyperdream_core.identity import Identity
from ...hyperdream_core.ops.changes import LayerChange
from ...hyperdream_core.ops.lowrank import LoraPair
from ...hyperdream_core.pipelines.drawing.guidance_config import GuidanceConfig
from ...hyperdream_core.pipelines.drawing.guided_step import Guidance
from ...hyperdream_core.pipelines.drawing.subjects import Pairs, ResolvedSubject, Subject, resolve
from ...hyperdream_core.pipelines.prompts import insert_identifier, without_identifier
from ..host import guidance, models, patches
from ..host.guided_prompts import with_wordings
from .live_adapter import refuse_banded_text
from .lora_files import LoraFile

_UNNAMED = "sks"
"""what a LoRA's subject is called if its file does not say"""


@dataclass(frozen=True, eq=False)
class ConnectedSubject:
    """One subject as it is connected."""

    adapter: Identity | LoraFile
    mask: Tensor | None = None
    """MASK (1, h, w) in 0..1: where this one is; None is everywhere"""
    neutral: Identity | None = None

    @property
    def identifier(self) -> str:
        return self.adapter.identifier if isinstance(self.adapter, Identity) else self.adapter.trigger or _UNNAMED

    def prompt(self, text: str) -> str:
        """The text with the word that stands for this one."""
        if isinstance(self.adapter, Identity):
            return insert_identifier(text, self.identifier, self.adapter.class_noun, missing="insert")
        # A LoRA may be of a style, or its word may be known to its user only.
        return insert_identifier(text, self.identifier) if "[v]" in text.lower() else text


@dataclass(frozen=True)
class Prompts:
    """What to draw, as it was typed."""

    prompt: str
    negative_prompt: str
    base_prompt: str
    """empty for the prompt without the words that stand for people"""

    def of_base(self, subjects: Sequence[ConnectedSubject]) -> str:
        """What the base alone is asked."""
        if self.base_prompt.strip():
            return self.base_prompt
        text = self.prompt
        for subject in subjects:
            text = without_identifier(text, subject.identifier)
        return text


@dataclass(frozen=True, eq=False)
class Guided:
    """What a guidance node gives."""

    model: Any
    positive: Any
    negative: Any
    said: str
    """the prompts as they were encoded"""


def guided(
    model: Any, clip: Any, subjects: Sequence[ConnectedSubject], prompts: Prompts, config: GuidanceConfig
) -> Guided:
    """MODEL and prompts for a sampler that mixes the base with these subjects.

    Raises:
        BaseMismatchError: an adapter for another family than the MODEL's.
        ConfigError: settings that contradict each other.
    """
    family = models.family_of(model)
    subjects = [replace(one, mask=_one_mask(one.mask, number)) for number, one in enumerate(subjects, start=1)]
    found = [_resolved(one, family, config) for one in subjects]
    null_share = 1.0 if config.null_strength is None else config.null_strength
    base_text, texts = prompts.of_base(subjects), [one.prompt(prompts.prompt) for one in subjects]
    clips = [_with_text(clip, text, config.strength) for _, text in found]
    null_clips = [_with_text(clip, text, config.strength * null_share) for _, text in found]
    worded = [models.conditioning(one, text) for one, text in zip(clips, texts, strict=True)]
    positive = with_wordings(models.conditioning(clip, base_text), worded, shows=worded[0])
    plain = models.conditioning(clip, prompts.negative_prompt)
    models.check_encoding(plain[0][0], family)
    nulls = [plain if one is clip else models.conditioning(one, prompts.negative_prompt) for one in null_clips]
    lines = [f"person {number}: {text}" for number, text in enumerate(texts, start=1)]
    said = "\n".join([*(lines if len(lines) > 1 else [f"person: {texts[0]}"]), f"base: {base_text}"])
    mixed = Guidance(config, [subject for subject, _ in found])
    negative = with_wordings(plain, nulls, shows=plain)
    return Guided(guidance.with_guidance(model, mixed), positive, negative, said)


def _resolved(
    connected: ConnectedSubject, family: BaseFamily, config: GuidanceConfig
) -> tuple[ResolvedSubject, Mapping[str, LoraPair]]:
    """The subject with its pairs named as the UNet names its layers, and the CLIP's weights that it changes."""
    adapter = connected.adapter
    of_unet: Identity | Pairs = adapter if isinstance(adapter, Identity) else adapter.unet
    wanted = Subject(adapter=of_unet, neutral=connected.neutral, identifier=connected.identifier)
    subject = resolve(family, wanted, config, 1)[0]
    if isinstance(adapter, Identity):
        refuse_banded_text(adapter, family)
        found = adapter.changes(adapter.bands[0])
        text = {patches.text_weight(n, family): pair for n, pair in found.items() if family.part_of(n) != UNET}
        subject = replace(subject, pairs=tuple(_of_unet(one, family) for one in subject.pairs))
    else:
        text = adapter.text
    return replace(subject, neutral=_of_unet(subject.neutral, family), mask=connected.mask), text


def _of_unet(pairs: Pairs, family: BaseFamily) -> dict[str, LayerChange]:
    return {to_ldm(name, family): pair for name, pair in pairs.items() if family.part_of(name) == UNET}


def _with_text(clip: Any, pairs: Mapping[str, LoraPair], strength: float) -> Any:
    return patches.clip_with_weights(clip, pairs, strength) if pairs and strength != 0 else clip


def _one_mask(mask: Tensor | None, number: int) -> Tensor | None:
    """(h, w) of a MASK (1, h, w)."""
    if mask is None or mask.dim() == 2:
        return mask
    if len(mask) != 1:
        raise ConfigError(f"mask_{number} holds {len(mask)} masks, expected one for all pictures; choose one of them")
    return mask[0]
