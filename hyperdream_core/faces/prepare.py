"""Photographs to prepared references: faces found, one chosen in each, cut out upright, and judged in words.

Command line and hosts alike call `prepare_references`, and nothing is spent on a prediction before it has spoken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from ..errors import ConfigError, ReferenceImageError
from ..ops.crop import FFHQ_MARGIN, alignment, outside_share
from ..pictures.files import WHITE, Picture, square_crop
from .detectors import DetectorName, open_detector
from .face import Face, FaceDetector, FaceOrder, HandedInFaces, in_order
from .preview import numbered_preview
from .quality import Quality, judge_quality
from .recognizer import Recognizer, aligned_square

_TIGHT_SIDE = 112


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Settings of the preparation of references."""

    detector: DetectorName = "auto"
    """Who looks for faces: insightface (needs onnxruntime and a model pack), cascade (scikit-image's, always there), or
    already-cropped for none; auto takes the first of these two that is there."""
    face: int = 0
    """Which face of a picture with several, counted from 1 in their order; 0 takes the first and warns."""
    face_order: FaceOrder = "size"
    """Order of the faces: the largest first, from left to right, or from the centre outwards."""
    on_no_face: Literal["stop", "skip", "whole-picture"] = "stop"
    """What to do with a picture in which no face is found."""
    min_score: float = 0.5
    """Surest a detector must be of a face, 0..1."""
    margin: float = FFHQ_MARGIN
    """Side of the crop as a multiple of ArcFace's tight square; 1.3 is the framing of CelebA-HQ and FFHQ, 2 shows the
    shoulders."""
    face_models: tuple[Path, ...] = ()
    """Folders to look for insightface's packs in, besides its own in the home folder."""
    background: tuple[int, int, int] = WHITE
    """Colour behind transparent pictures: red, green and blue, 0..255."""

    def __post_init__(self) -> None:
        if self.face < 0:
            raise ConfigError(f"a face's number must be 0 or more, got {self.face}; 0 takes the first")
        if not 0 <= self.min_score <= 1:
            raise ConfigError(f"min_score must lie in 0..1, got {self.min_score}")
        if not 1 <= self.margin <= 4:
            raise ConfigError(f"margin must lie in 1..4, got {self.margin}")
        if len(self.background) != 3 or not all(0 <= value <= 255 for value in self.background):
            raise ConfigError(f"background must be three numbers in 0..255, got {self.background}")


@dataclass(frozen=True, eq=False)
class PreparedPicture:
    """One picture and what became of it."""

    picture: Picture
    faces: tuple[Face, ...]
    """sure enough ones, in the order asked for"""
    chosen: int
    """number of the face taken, from 1; 0 for the whole picture or none"""
    crop: Tensor | None
    """(3, size, size); None if the picture is skipped"""
    quality: Quality
    notes: tuple[str, ...]
    embedding: Tensor | None = None
    """(d,) of the face taken, if there is a recogniser"""

    def preview(self) -> Image.Image:
        """The picture with its faces numbered."""
        return numbered_preview(self.picture.pixels, self.faces, (self.chosen,))

    def report(self) -> dict[str, Any]:
        """What is known of it, as JSON values."""
        return {
            "file": self.picture.name,
            "faces": [_face_report(number, face, self.chosen) for number, face in enumerate(self.faces, start=1)],
            "used": "nothing" if self.crop is None else f"face {self.chosen}" if self.chosen else "whole picture",
            "quality": self.quality.score,
            "remarks": list(self.quality.remarks),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, eq=False)
class PreparedReferences:
    """References of one subject, ready for prediction and polishing."""

    pixels: Tensor
    """(n, 3, size, size) in 0..1"""
    weights: tuple[float, ...]
    """how much each counts beside the others, by quality"""
    pictures: tuple[PreparedPicture, ...]
    """all of them, skipped ones too"""
    detector: str
    """who looked, with what, on which device"""
    agreement: str
    """whether all show one person, in words"""
    notes: tuple[str, ...]
    """everything a user should hear"""

    def report(self) -> dict[str, Any]:
        """What was seen, as JSON values."""
        return {
            "detector": self.detector,
            "agreement": self.agreement,
            "weights": list(self.weights),
            "pictures": [picture.report() for picture in self.pictures],
            "notes": list(self.notes),
        }


def prepare_references(
    pictures: Sequence[Picture],
    size: int,
    config: PrepareConfig | None = None,
    found: Sequence[Sequence[Face]] | None = None,
    recognizer: Recognizer | None = None,
) -> PreparedReferences:
    """Find, choose, align and judge the face in each picture of one subject.

    Args:
        pictures: as `pictures.files.read_picture` or `pictures.arrays.picture_from_array` give them.
        size: side of the crops, px.
        config: settings.
        found: the faces that a host has already found in each picture; takes the place of a detector.
        recognizer: tells whether the pictures show one person.

    Raises:
        ReferenceImageError: no picture, a picture without a face, or fewer faces than the number asked for.
        MissingDependencyError, FileFormatError: the detector asked for cannot be had.
    """
    config = config or PrepareConfig()
    if not pictures:
        raise ReferenceImageError("no reference picture given, expected at least one; name a picture file")
    detectors, notes = _detectors(config, found, len(pictures))
    prepared = []
    for number, (picture, detector) in enumerate(zip(pictures, detectors, strict=True), start=1):
        place = f"reference {number} of {len(pictures)} ({_called(picture)})"
        prepared.append(prepare_picture(picture, place, size, config, detector, recognizer))
    crops = [one.crop for one in prepared if one.crop is not None]
    if not crops:
        raise ReferenceImageError(
            f"none of the {len(pictures)} pictures shows a face, and all were skipped; use others, or set on_no_face "
            "to whole-picture"
        )
    agreement, warnings = _agreement([one for one in prepared if one.crop is not None], recognizer)
    said = [note for one in prepared for note in one.notes]
    return PreparedReferences(
        pixels=torch.stack(crops),
        weights=tuple(one.quality.score for one in prepared if one.crop is not None),
        pictures=tuple(prepared),
        detector=detectors[0].about,
        agreement=agreement,
        notes=(*notes, *said, *warnings),
    )


def _detectors(
    config: PrepareConfig, found: Sequence[Sequence[Face]] | None, pictures: int
) -> tuple[list[FaceDetector], tuple[str, ...]]:
    """Who finds the faces of each picture, and what to say about that choice."""
    if found is None:
        detector, notes = open_detector(config.detector, config.face_models)
        return [detector] * pictures, notes
    if len(found) != pictures:
        raise ConfigError(f"faces of {len(found)} pictures were handed in for {pictures} pictures; give both alike")
    return [HandedInFaces(tuple(faces)) for faces in found], ()


def prepare_picture(
    picture: Picture,
    place: str,
    size: int,
    config: PrepareConfig,
    detector: FaceDetector,
    recognizer: Recognizer | None = None,
) -> PreparedPicture:
    """Find, choose, align and judge the face in one picture, with a detector that is open already.

    Args:
        picture: as read.
        place: what errors and notes call it.
        size: side of the crop, px.
        config: settings; its detector is not opened.
        detector: who looks.
        recognizer: embeds the face, if there is one.

    Raises:
        ReferenceImageError: no face, where `config.on_no_face` is stop, or fewer than the number asked for.
    """
    pixels, notes = picture.pixels, list(picture.notes)
    search = detector.find(pixels, config.min_score)
    sure = [face for face in search.faces if face.score >= config.min_score]
    faces = tuple(in_order(sure, config.face_order, *pixels.shape[-2:]))
    if not faces:
        return _without_face(picture, place, size, config, _why(place, detector, search.faces, search.looked, config))
    if config.face > len(faces):
        raise ReferenceImageError(
            f"{place} shows {len(faces)} face{'s'[: len(faces) != 1]}, but face {config.face} was asked for; ask for "
            f"one of 1 to {len(faces)}"
        )
    chosen = config.face or 1
    face = faces[chosen - 1]
    if face.landmarks is None:
        # Already cropped, or a box without more: nothing to align, and nothing known to judge.
        known = recognizer is not None and not recognizer.needs_landmarks
        embedding = recognizer.embed(pixels, face) if recognizer is not None and known else None
        whole = square_crop(pixels, size)
        return PreparedPicture(picture, faces, chosen, whole, Quality(1.0, ()), tuple(notes), embedding)
    if len(faces) > 1 and not config.face:
        order = {"size": "the largest", "left-to-right": "the leftmost", "centre": "the most central one"}
        notes.append(
            f"{place}: shows {len(faces)} faces; {order[config.face_order]} is taken; ask for another by its number"
        )
    if abs(face.roll or 0.0) > 45:
        notes.append(f"{place}: the face lies {abs(face.roll or 0.0):.0f} degrees on its side and is turned upright")
    matrix = alignment(face.landmarks, config.margin)
    quality = judge_quality(face, aligned_square(pixels, face, _TIGHT_SIDE), outside_share(matrix, *pixels.shape[-2:]))
    notes += [f"{place}: {remark}" for remark in quality.remarks]
    crop = aligned_square(pixels, face, size, config.margin)
    embedding = recognizer.embed(pixels, face) if recognizer is not None else None
    return PreparedPicture(picture, faces, chosen, crop, quality, tuple(notes), embedding)


def _without_face(picture: Picture, place: str, size: int, config: PrepareConfig, why: str) -> PreparedPicture:
    if config.on_no_face == "stop":
        raise ReferenceImageError(
            f"{why}. Use a photograph with a face at least 64 px wide, take it as already-cropped, or set on_no_face "
            "to skip or whole-picture"
        )
    if config.on_no_face == "skip":
        nothing = Quality(0.0, ("no face was found, so the picture is skipped",))
        return PreparedPicture(picture, (), 0, None, nothing, (*picture.notes, f"{why}; skipped"))
    whole = Quality(0.5, ("no face was found, so the whole picture is used",))
    return PreparedPicture(
        picture, (), 0, square_crop(picture.pixels, size), whole, (*picture.notes, f"{why}; the whole picture is used")
    )


def _why(place: str, detector: FaceDetector, weak: Sequence[Face], looked: str, config: PrepareConfig) -> str:
    best = max((face.score for face in weak), default=0.0)
    return (
        f"{place} shows no face: best score {best:.2f}, {config.min_score:.2f} is needed; {detector.about} looked "
        f"{looked}"
    )


def _agreement(used: Sequence[PreparedPicture], recognizer: Recognizer | None) -> tuple[str, tuple[str, ...]]:
    """Whether all references show one person, and a warning that names the one that does not."""
    if len(used) < 2:
        return "one reference", ()
    known = [one for one in used if one.embedding is not None]
    if recognizer is None:
        return "not measured: there is no recogniser; give ArcFace, AuraFace or SFace as an ONNX file", ()
    if len(known) < 2:
        return f"not measured: {recognizer.about} needs faces that were found, not pictures already cropped", ()
    embeddings = torch.stack([one.embedding for one in known if one.embedding is not None])
    cosines = embeddings @ embeddings.T
    others = (cosines.sum(1) - 1.0) / (len(known) - 1)
    lowest = int(others.argmin())
    text = f"mean cosine {float(others.mean()):.2f} by {recognizer.about}"
    if float(others[lowest]) >= recognizer.same_person:
        return f"one person: {text}", ()
    if len(known) == 2:
        names = " and ".join(_called(one.picture) for one in known)
        return f"two people: {text}", (f"{names} may show two people (cosine {float(cosines[0, 1]):.2f})",)
    rest = [row for row in range(len(known)) if row != lowest]
    among = cosines[rest][:, rest]
    mean = float((among.sum() - len(rest)) / (len(rest) * (len(rest) - 1)))
    warning = (
        f"{_called(known[lowest].picture)} disagrees with the other references (cosine {float(others[lowest]):.2f}, "
        f"among the others {mean:.2f}): another person, or a poor picture"
    )
    if mean < recognizer.same_person:
        warning = f"the references may show several people mixed; most of all {warning}"
    return f"several people mixed: {text}", (warning,)


def _called(picture: Picture) -> str:
    height, width = picture.pixels.shape[-2:]
    return f"{Path(picture.name).name or 'without a name'}, {width}x{height} px"


def _face_report(number: int, face: Face, chosen: int) -> dict[str, Any]:
    angle = face.angle
    known = {"yaw": angle.yaw, "pitch": angle.pitch} if angle is not None else {}
    roll = {} if face.roll is None else {"roll": face.roll}
    return {
        "number": number,
        "chosen": number == chosen,
        "box": [round(value, 1) for value in face.box],
        "width": round(face.side, 1),
        "score": round(face.score, 3),
        "angle": {name: round(value, 1) for name, value in (known | roll).items()},
        "landmarks": None if face.landmarks is None else [[round(v, 1) for v in p] for p in face.landmarks.tolist()],
        "landmarks_measured": face.is_measured,
    }
