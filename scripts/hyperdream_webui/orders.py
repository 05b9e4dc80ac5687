"""What the tab and its API are asked for and answer with, checked before anything is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from hyperdream_core.bases.registry import BASES
from hyperdream_core.bundled import bundled_base
from hyperdream_core.errors import ConfigError
from hyperdream_core.faces.detectors import DetectorName
from hyperdream_core.faces.face import FaceOrder
from hyperdream_core.formats.file_names import check_name
from hyperdream_core.pipelines.polishing.polish import STEPS_AFTER_PREDICTION, STEPS_FROM_SCRATCH, PolishConfig

CHECKPOINT = "checkpoint"
"""the one that the host has loaded"""
SHIPPED = tuple(name for name in BASES if bundled_base(name) is not None)
"""bases that come with HyperDream and are drawn with by it, not by the host"""
_MOST_PROMPTS = 4


@dataclass(frozen=True, kw_only=True)
class FaceChoice:
    """How the faces of photographs are found and chosen."""

    detector: DetectorName = "auto"
    order: FaceOrder = "size"
    face: int = 0
    """counted from 1; 0 takes the first"""
    on_no_face: str = "stop"


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

    def __post_init__(self) -> None:
        if not self.files:
            raise ConfigError("there is no photograph; drop one or several of the same person first")
        check_name(self.name)
        if self.on not in (CHECKPOINT, *SHIPPED):
            known = " or ".join(map(repr, (CHECKPOINT, *SHIPPED)))
            raise ConfigError(f"on must be {known}, got {self.on!r}; choose one of them")
        if not -1 <= self.steps <= 2000:
            raise ConfigError(
                f"steps must lie in -1..2000, got {self.steps}; -1 takes {STEPS_AFTER_PREDICTION} after a prediction "
                f"and {STEPS_FROM_SCRATCH} from scratch"
            )
        if self.size < 0 or self.size % 64:
            raise ConfigError(f"size must be a multiple of 64 px, got {self.size}; 0 takes the checkpoint's own")
        if len(self.prompt_lines) > _MOST_PROMPTS:
            raise ConfigError(f"{len(self.prompt_lines)} prompts, expected at most {_MOST_PROMPTS}; leave some out")

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
