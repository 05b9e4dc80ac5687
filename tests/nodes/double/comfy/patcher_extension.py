"""Wrappers around the UNet's call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class WrappersMP:
    DIFFUSION_MODEL = "diffusion_model"


class Executor:
    """What a wrapper is given: the next one, and in `class_obj` the UNet really in use."""

    def __init__(self, call: Callable[..., Any], class_obj: Any) -> None:
        self._call, self.class_obj = call, class_obj

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._call(*arguments, **named)
