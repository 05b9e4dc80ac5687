"""What a base model looks like, as data: layer names, shapes and key dialects."""

from __future__ import annotations

from .family import TARGET_SETS, UNET, BaseFamily, Layer
from .registry import BASES, detect_family, get_base

__all__ = ["BASES", "TARGET_SETS", "UNET", "BaseFamily", "Layer", "detect_family", "get_base"]
