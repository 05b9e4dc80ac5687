"""A LoRA file of any program as factors of a loaded MODEL's and CLIP's layers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...hyperdream_core.bases import UNET
from ...hyperdream_core.bases.keys import to_ldm
from ...hyperdream_core.formats.lora_file import read_lora_file as read
from ...hyperdream_core.ops.lowrank import LoraPair
from ..host import models, patches, run


@dataclass(frozen=True, eq=False)
class LoraFile:
    """What a LoRA changes, alpha folded in."""

    unet: dict[str, LoraPair]
    """layer of the UNet -> down (r, i), up (o, r); i of a convolution is channels times its kernel"""
    text: dict[str, LoraPair]
    """weight of the CLIP's own module -> the same"""
    trigger: str
    """what calls the subject, word for word as the file says it; empty if it does not"""


def read_lora_file(path: Path, model: Any) -> LoraFile:
    """The LoRA in a file, for the family of this MODEL; what the file has besides is named in the log.

    Raises:
        FileFormatError: not a whole LoRA file, or one of another kind, such as LoHa or DoRA.
        BaseMismatchError: it changes layers that the family does not have.
    """
    family = models.family_of(model)
    found = read(path, family.name)
    if found.note:
        run.say(f"{path.name}: {found.note}")
    unet, text = {}, {}
    for name, pair in found.pairs.items():
        if family.part_of(name) == UNET:
            unet[to_ldm(name, family)] = pair
        else:
            text[patches.text_weight(name, family)] = pair
    return LoraFile(unet, text, found.identifier or " ".join(found.trigger_phrases))
