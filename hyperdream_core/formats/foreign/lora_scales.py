"""How strongly a LoRA's factors count: alpha, where a file says it at each layer, and where it says it once for all.

A layer's change is scale * up @ down with scale = alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRA
(arXiv:2312.03732). Without a word about alpha, it is the rank and the scale is 1.

| where | who | what |
| --- | --- | --- |
| `<layer>.alpha` | kohya and those who follow | one number of any type |
| `lora_adapter_metadata` | diffusers with PEFT | `unet.lora_alpha`, `unet.use_rslora`, `unet.alpha_pattern`, ... |
| `ss_network_alpha` | kohya, where the layers do not say | and `conv_alpha` in `ss_network_args` for 3x3 convolutions |
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...errors import FileFormatError, quoted
from ...json_text import JsonTextError, parse_json

_PARTS = ("text_encoder_2", "text_encoder", "unet")


@dataclass(frozen=True)
class Scales:
    """What a file's metadata says about alpha."""

    path: Path
    peft: Mapping[str, Any]
    """diffusers' `lora_adapter_metadata`"""
    kohya: float | None
    """`ss_network_alpha`"""
    kohya_convolutions: float | None
    """`conv_alpha`"""

    def of(self, key: str, rank: int, alpha: float | None, is_wide: bool) -> float:
        """The factor on a layer's `up @ down`.

        Args:
            key: of the layer, as the file has it.
            rank: of its factors.
            alpha: its own, if the file has one.
            is_wide: whether it is a convolution with a kernel larger than 1x1.

        Raises:
            FileFormatError: a number in the metadata that is none.
        """
        if alpha is not None:
            return alpha / rank
        if self.peft:
            return self._of_peft(key, rank)
        if self.kohya is not None and key.startswith(("lora_unet_", "lora_te")):
            chosen = self.kohya_convolutions if is_wide else None
            return (self.kohya if chosen is None else chosen) / rank
        return 1.0

    def _of_peft(self, key: str, rank: int) -> float:
        plain = key.removeprefix("base_model.model.")
        part = next((part for part in _PARTS if plain.startswith(f"{part}.")), "")
        layer = plain.removeprefix(f"{part}.") if part else plain

        def entry(name: str) -> Any:
            return self.peft.get(f"{part}.{name}", self.peft.get(name))

        own = f"{part}.alpha_pattern"
        stated = self._of_patterns(own if own in self.peft else "alpha_pattern", layer)
        stated = entry("lora_alpha") if stated is None else stated
        if stated is None:
            return 1.0
        alpha = _number(self.path, "lora_alpha", stated)
        return alpha / (math.sqrt(rank) if entry("use_rslora") is True else rank)

    def _of_patterns(self, key: str, layer: str) -> Any:
        """The value of the first pattern that is an end of the layer's path; None if none is."""
        ends = self._patterns.get(key, {})
        paths = [layer, *(layer[dot.end() :] for dot in re.finditer(r"\.", layer))]
        found = [ends[path] for path in paths if path in ends]
        return min(found, key=lambda one: one[0])[1] if found else None

    @cached_property
    def _patterns(self) -> dict[str, dict[str, tuple[int, Any]]]:
        return {key: _ends(value) for key, value in self.peft.items() if key.endswith("alpha_pattern")}


def scales_of(path: Path, metadata: Mapping[str, str]) -> Scales:
    """What the metadata of the file says.

    Raises:
        FileFormatError: an entry that is not what it must be.
    """
    peft = _json_object(path, metadata, "lora_adapter_metadata")
    arguments = _json_object(path, metadata, "ss_network_args")
    # In our own files ranks may differ from layer to layer, and the entry speaks of the largest.
    is_ours = "hyperdream.family" in metadata
    stated = None if is_ours else metadata.get("ss_network_alpha")
    kohya = None if stated in (None, "", "None") else _number(path, "ss_network_alpha", stated)
    convolutions = arguments.get("conv_alpha")
    return Scales(path, peft, kohya, None if convolutions is None else _number(path, "conv_alpha", convolutions))


def _json_object(path: Path, metadata: Mapping[str, str], key: str) -> Mapping[str, Any]:
    text = metadata.get(key, "")
    if not text.strip() or text.strip() == "None":
        return {}
    try:
        return dict(parse_json(text))
    except JsonTextError as error:
        raise FileFormatError(path, f"has {key} in its metadata that {error}. Get the file again.") from error


def _number(path: Path, key: str, value: Any) -> float:
    try:
        number = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise FileFormatError(
            path, f"has {key} {quoted(value, 40)} in its metadata, but a number is expected. Get the file again."
        )
    return number


def _ends(patterns: Any) -> dict[str, tuple[int, Any]]:
    """PEFT's pattern table: end of a path -> its place in the table, and its value.

    PEFT takes the keys as regular expressions; a stranger's are compared as they are, but for the marks of ends and
    full stops.
    """
    ends: dict[str, tuple[int, Any]] = {}
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        plain = re.sub(r"\\(.)", r"\1", str(pattern).removeprefix("^").removesuffix("$"))
        ends.setdefault(plain, (len(ends), value))
    return ends
