"""ONNX face models that a user has put somewhere: found by name in the usual layouts, opened with onnxruntime.

They run through onnxruntime alone. The `insightface` package would do the same with them, but it brings OpenCV and
onnx along, its older versions have to be compiled, and its newer ones want a licence file beside the models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import FileFormatError, MissingDependencyError
from ..regular_file import check_regular

Kind = Literal["detector", "recognizer"]

# How the files of insightface's packs, of AuraFace and of OpenCV's zoo are called, best first.
_NAMES: dict[Kind, tuple[str, ...]] = {
    "detector": ("scrfd_10g*.onnx", "det_10g*.onnx", "scrfd*.onnx", "det_*.onnx"),
    "recognizer": ("glintr100*.onnx", "w600k_*.onnx", "*auraface*.onnx", "*arcface*.onnx", "*sface*.onnx"),
}
_WANTED: dict[Kind, str] = {
    "detector": "det_10g.onnx or scrfd_10g_bnkps.onnx (17 MB)",
    "recognizer": "w600k_r50.onnx (174 MB), AuraFace's glintr100.onnx (261 MB) or SFace's face_recognition_sface.onnx "
    "(37 MB)",
}
# A pack unpacks to FOLDER/PACK/x.onnx or, one level too deep, FOLDER/PACK/PACK/x.onnx; and hosts name a folder above.
_DEPTHS = ("", "*/", "*/*/", "*/*/*/")
_PROVIDERS = ("CUDAExecutionProvider", "ROCMExecutionProvider", "DmlExecutionProvider", "CPUExecutionProvider")


def usual_folders() -> tuple[Path, ...]:
    """Where insightface itself keeps its packs."""
    return (Path.home() / ".insightface" / "models",)


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """A network ready to run."""

    path: Path
    provider: str
    """what it runs on, such as CUDAExecutionProvider"""
    input_shape: tuple[int | None, ...]
    """None for an axis of any size"""
    output_shapes: tuple[tuple[int | None, ...], ...]
    _session: Any
    _errors: tuple[type[Exception], ...]

    @property
    def about(self) -> str:
        return f"{self.path.name} on {self.provider}"

    def run(self, batch: np.ndarray) -> list[np.ndarray]:
        """All outputs for a batch (b, 3, h, w) float32.

        Raises:
            FileFormatError: the model cannot take it, or puts out numbers that are not finite.
        """
        try:
            outputs: list[np.ndarray] = self._session.run(None, {self._session.get_inputs()[0].name: batch})
        except self._errors as error:
            raise FileFormatError(
                self.path, f"cannot run on a batch of shape {batch.shape} ({_first_line(error)}); get the file again"
            ) from error
        for place, output in enumerate(outputs, start=1):
            if output.dtype.kind not in "fiu" or not np.isfinite(output).all():
                raise FileFormatError(
                    self.path,
                    f"puts out numbers that are not finite (output {place} of {len(outputs)}), so its weights are "
                    "damaged; get the file again",
                )
        return outputs


def find_model(kind: Kind, folders: Sequence[Path]) -> Path | None:
    """The best file of that kind in the folders, up to three levels deep; None if there is none."""
    for folder in folders:
        if folder.is_file():
            return folder
        for pattern in _NAMES[kind]:
            for depth in _DEPTHS:
                found = sorted(path for path in folder.glob(depth + pattern) if path.is_file())
                if found:
                    return found[0]
    return None


def require_model(kind: Kind, folders: Sequence[Path]) -> Path:
    """The best file of that kind in the folders.

    Raises:
        FileFormatError: there is none; names files, sizes, folders and what to do.
    """
    path = find_model(kind, folders)
    if path is None:
        where = ", ".join(f"{folder}{'' if folder.is_dir() else ' (no such folder)'}" for folder in folders)
        raise FileFormatError(
            folders[0],
            f"holds no face {kind}: expected {_WANTED[kind]} in one of the folders {where}, directly or in folders "
            "below; unpack insightface's pack buffalo_l or antelopev2 there",
        )
    return path


def open_model(path: Path) -> OnnxModel:
    """Open an ONNX file on the best device that the installed onnxruntime knows.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        FileFormatError: missing, damaged, no ONNX model, or one with several inputs.
    """
    if find_spec("onnxruntime") is None:
        raise MissingDependencyError("onnxruntime", "pip install onnxruntime (or onnxruntime-gpu)")
    check_regular(path)
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as raised

    names = (
        "Fail InvalidArgument NoSuchFile NoModel EPFail InvalidGraph InvalidProtobuf RuntimeException NotImplemented"
    )
    errors = tuple(getattr(raised, name) for name in names.split() if hasattr(raised, name))
    available = onnxruntime.get_available_providers()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=[name for name in _PROVIDERS if name in available]
        )
    except (*errors, OSError, ValueError) as error:
        held = f"; the file has {path.stat().st_size:,} bytes" if path.is_file() else ""
        raise FileFormatError(
            path, f"is not an ONNX model that can be run ({_first_line(error)}{held}); download it again to {path}"
        ) from error
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise FileFormatError(path, f"takes {len(inputs)} inputs, but a face model takes one picture; use another file")
    shapes = [_shape(output.shape) for output in session.get_outputs()]
    return OnnxModel(path, session.get_providers()[0], _shape(inputs[0].shape), tuple(shapes), session, errors)


def _shape(axes: Sequence[int | str | None] | None) -> tuple[int | None, ...]:
    return tuple(axis if isinstance(axis, int) else None for axis in axes or ())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip(" .")[:200]
