"""What the tab and its API are asked for and answer with, checked before anything is done."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from PIL import Image

from hyperdream_core.bases.registry import BASES
from hyperdream_core.bundled import bundled_base
from hyperdream_core.errors import ConfigError
from hyperdream_core.faces.detectors import DetectorName
from hyperdream_core.faces.face import FaceOrder
from hyperdream_core.formats.file_names import check_name
from hyperdream_core.pipelines.before_work import check_texts
from hyperdream_core.pipelines.polishing.polish_config import STEPS_AFTER_PREDICTION, STEPS_FROM_SCRATCH, PolishConfig

CHECKPOINT = "checkpoint"
"""the one that the host has loaded"""
SHIPPED = tuple(name for name in BASES if bundled_base(name) is not None)
"""bases that come with HyperDream and are drawn with by it, not by the host"""
OnNoFace = Literal["stop", "skip", "whole-picture"]
LARGEST_SEED = 2**32 - 1
"""of the hosts' own dice"""
LARGEST_SIZE = 2048
_MOST_PROMPTS = 4
_MOST_FACES = 1000
_LONGEST = {"identifier": 60, "class_noun": 60, "caption": 4000, "prompts": 4000}
"""characters"""
_RANGES = {"batch": (1, 64), "samples_at_once": (1, 64), "draw_steps": (1, 150), "seed": (-1, LARGEST_SEED)}


@dataclass(frozen=True, kw_only=True)
class FaceChoice:
    """How the faces of photographs are found and chosen."""

    detector: DetectorName = "auto"
    order: FaceOrder = "size"
    face: int = 0
    """counted from 1; 0 takes the first"""
    on_no_face: OnNoFace = "stop"

    def __post_init__(self) -> None:
        for name, kind in (("detector", DetectorName), ("order", FaceOrder), ("on_no_face", OnNoFace)):
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise ConfigError(
                    f"{name} must be one of {known}, got {getattr(self, name)[:60]!r}; choose one of them"
                )
        if not 0 <= self.face <= _MOST_FACES:
            raise ConfigError(f"face must lie in 0..{_MOST_FACES}, got {self.face}; 0 takes the first")


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to make of photographs."""

    files: Sequence[str | Path]
    faces: FaceChoice = field(default_factory=FaceChoice)
    name: str = "face"
    on: str = CHECKPOINT
    """`checkpoint`, the one that is loaded, or a base that comes with HyperDream"""
    predict: bool = True
    """start from a prediction where a predictor fits"""
    steps: int = -1
    """of polishing; 0 keeps the prediction, -1 takes as many as are usual after a prediction or from scratch"""
    size: int = 0
    """side of the pictures trained on and drawn, px; 0 takes the checkpoint's own"""
    batch: int = PolishConfig.batch
    """noise draws in a step"""
    samples_at_once: int = PolishConfig.samples_at_once
    """of a batch that share a pass; fewer take less memory and give the same"""
    identifier: str = "sks"
    class_noun: str = "face"
    caption: str = ""
    """what the photographs show besides the person, one line for all or one for each"""
    prompts: str = "a [V] face"
    """what to draw for comparison, one in a line; nothing draws nothing"""
    draw_steps: int = 20
    seed: int = 0
    """-1 takes one by chance"""

    def __post_init__(self) -> None:
        if not self.files:
            raise ConfigError("there is no photograph; drop one or several of the same person first")
        check_name(self.name)
        check_texts(**{name: getattr(self, name) for name in _LONGEST})
        if self.on not in (CHECKPOINT, *SHIPPED):
            known = " or ".join(map(repr, (CHECKPOINT, *SHIPPED)))
            raise ConfigError(f"on must be {known}, got {self.on[:60]!r}; choose one of them")
        if not -1 <= self.steps <= 2000:
            raise ConfigError(
                f"steps must lie in -1..2000, got {self.steps}; -1 takes {STEPS_AFTER_PREDICTION} after a prediction "
                f"and {STEPS_FROM_SCRATCH} from scratch"
            )
        if not 0 <= self.size <= LARGEST_SIZE or self.size % 64:
            raise ConfigError(
                f"size must be a multiple of 64 px up to {LARGEST_SIZE}, got {self.size}; 0 takes the checkpoint's own"
            )
        for name, (low, high) in _RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} must lie in {low}..{high}, got {getattr(self, name)}; choose one within")
        self._check_texts()
        if len(self.prompt_lines) > _MOST_PROMPTS:
            raise ConfigError(f"{len(self.prompt_lines)} prompts, expected at most {_MOST_PROMPTS}; leave some out")

    def _check_texts(self) -> None:
        for name, longest in _LONGEST.items():
            text = getattr(self, name)
            if len(text) > longest:
                raise ConfigError(f"{name} has {len(text)} characters, expected at most {longest}; shorten it")
        for name, called in (("identifier", "the trigger word"), ("class_noun", "what the subject is")):
            text = getattr(self, name)
            if not text or " ".join(text.split()) != text or re.search(r"[<>:\[\]()\x00-\x1f]", text):
                raise ConfigError(
                    f"{name} ({called}) must be a word, or words with one space between, got {text!r}; write a plain "
                    f"one such as {getattr(Order, name)!r}"
                )

    @property
    def prompt_lines(self) -> list[str]:
        return [line.strip() for line in self.prompts.splitlines() if line.strip()]


@dataclass(frozen=True, kw_only=True, eq=False)
class Created:
    """What came of it."""

    name: str
    """in the library"""
    prompt: str
    """draws this person in the host; empty if the host cannot"""
    grid: Image.Image | None
    likeness: float | None
    """mean of the pictures drawn with the identity"""
    likeness_before: float | None
    """of the pictures drawn without"""
    report: str
    infotext: str
    cancelled: bool
