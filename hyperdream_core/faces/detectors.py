"""The face detectors by name, and which one is taken when none is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from ..errors import ConfigError, FileFormatError
from .cascade import CascadeDetector
from .face import AlreadyCropped, FaceDetector
from .insightface_detector import InsightfaceDetector
from .onnx_models import find_model, usual_folders

DetectorName = Literal["auto", "insightface", "cascade", "already-cropped"]

DETECTORS: dict[str, Callable[[Sequence[Path]], FaceDetector]] = {
    "insightface": InsightfaceDetector,
    "cascade": lambda folders: CascadeDetector(),
    "already-cropped": lambda folders: AlreadyCropped(),
}


def open_detector(name: DetectorName = "auto", folders: Sequence[Path] = ()) -> tuple[FaceDetector, tuple[str, ...]]:
    """A detector and the notes on its choice.

    `auto` takes insightface's if onnxruntime and a model are there, otherwise scikit-image's cascade; what it passes
    over is no error, and noted only if it looked usable.

    Args:
        name: a key of `DETECTORS`, or `auto`.
        folders: to look for ONNX models in, before insightface's own.

    Raises:
        ConfigError: an unknown name.
        MissingDependencyError: a package is missing that the detector asked for cannot do without, or for `auto`
            scikit-image.
        FileFormatError: a model was asked for by name and is missing or damaged.
    """
    places = (*folders, *usual_folders())
    if name != "auto":
        if name not in DETECTORS:
            raise ConfigError(f"unknown face detector {name!r}; known: auto, {', '.join(DETECTORS)}")
        return DETECTORS[name](places), ()
    notes: tuple[str, ...] = ()
    if find_spec("onnxruntime") is not None and find_model("detector", places) is not None:
        try:
            return InsightfaceDetector(places), ()
        except FileFormatError as error:
            notes = (f"faces are looked for with scikit-image's cascade, because {error}",)
    return CascadeDetector(), notes
