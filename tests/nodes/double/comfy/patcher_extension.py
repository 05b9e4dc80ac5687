"""Wrappers around what sampling does, by kind and key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any


class WrappersMP:
    OUTER_SAMPLE = "outer_sample"
    PREDICT_NOISE = "predict_noise"
    CALC_COND_BATCH = "calc_cond_batch"
    DIFFUSION_MODEL = "diffusion_model"


class Executor:
    """What a wrapper is given: the next one, and in `class_obj` whose method is wrapped."""

    def __init__(self, call: Callable[..., Any], class_obj: Any) -> None:
        self._call, self.class_obj = call, class_obj

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._call(*arguments, **named)


def wrapped(call: Callable[..., Any], class_obj: Any, kind: str, transformer_options: dict[str, Any]) -> Any:
    """A function with the wrappers of a kind around it, the first one outermost."""
    wrappers = transformer_options.get("wrappers", {}).get(kind, {})
    each: Sequence[Callable[..., Any]] = [wrapper for found in wrappers.values() for wrapper in found]
    for wrapper in reversed(each):
        call = partial(wrapper, Executor(call, class_obj))
    return call


def get_wrappers_with_key(kind: str, key: str, options: dict[str, Any], is_model_options: bool = False) -> list[Any]:
    options = options.get("transformer_options", {}) if is_model_options else options
    return list(options.get("wrappers", {}).get(kind, {}).get(key, []))
