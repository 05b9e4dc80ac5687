"""A node's run in ComfyUI: ordinary tensors, the progress bar, the Stop button, the log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import comfy.model_management as memory
import comfy.utils
import torch
from PIL import Image

from ...hyperdream_core.errors import Cancelled

_PREVIEW_SIDE = 512


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Leave inference mode, without gradients: the core keeps tensors, and training on them fails on inference ones."""
    with torch.inference_mode(False), torch.no_grad():
        yield


class Bar:
    """The node's progress bar, and the Stop button."""

    def __init__(self) -> None:
        # How many steps there are is said with each of them.
        self._bar = comfy.utils.ProgressBar(1)

    def __call__(self, step: int, total: int, preview: Image.Image | None = None) -> None:
        """Show progress, with a picture if there is one.

        Raises:
            Cancelled: the user has pressed Stop.
        """
        shown = None if preview is None else ("JPEG", preview, _PREVIEW_SIDE)
        self._bar.update_absolute(step, total, shown)
        with stop_as_cancelled():
            memory.throw_exception_if_processing_interrupted()


@contextmanager
def stop_as_cancelled() -> Iterator[None]:
    """Turn ComfyUI's interrupt, which its layers raise wherever they are, into the core's Cancelled."""
    try:
        yield
    except memory.InterruptProcessingException as stop:
        raise Cancelled("stopped by the user") from stop


def stop_prompt() -> NoReturn:
    """End the running prompt as the Stop button does; called once what was made is safe."""
    raise memory.InterruptProcessingException


def say(text: str) -> None:
    """A line in ComfyUI's log."""
    logging.info(text)


def tidy_up() -> None:
    """Give back what torch holds for nothing."""
    memory.soft_empty_cache()
