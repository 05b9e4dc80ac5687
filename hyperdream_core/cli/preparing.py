"""The command `prepare`, and the same preparation of references for every command that takes photographs."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import Console, Outcome
from .flags import add_config_flags, config_from_flags, given_values, whole_number

if TYPE_CHECKING:
    from ..faces.prepare import PrepareConfig, PreparedReferences
    from ..faces.recognizer import Recognizer
    from ..pictures.files import Picture

# What people are called in prompts; a face detector has nothing to say about anything else.
_PEOPLE = {"face", "person", "man", "woman", "boy", "girl", "child", "baby"}


def add_reference_flags(parser: argparse.ArgumentParser) -> None:
    """The pictures of the subject, and how their faces are found."""
    from ..faces.prepare import PrepareConfig

    parser.add_argument("pictures", metavar="PICTURE", nargs="+", type=Path, help="photographs of one subject")
    group = parser.add_argument_group("faces")
    add_config_flags(group, PrepareConfig)
    group.add_argument(
        "--recognizer",
        type=Path,
        metavar="FILE",
        help="ArcFace, AuraFace or SFace in ONNX, or a folder of insightface's packs, to measure likeness with",
    )


def read_pictures(arguments: argparse.Namespace) -> list[Picture]:
    """The pictures of `add_reference_flags`, read before anything that takes longer."""
    from ..faces.prepare import PrepareConfig
    from ..pictures.files import read_picture

    background = config_from_flags(PrepareConfig, arguments).background
    return [read_picture(path, background) for path in arguments.pictures]


def prepare_subject(
    arguments: argparse.Namespace, console: Console, pictures: list[Picture], family: str, size: int, class_noun: str
) -> PreparedReferences:
    """The references of one subject for a base's family, and everything to say about them.

    Raises:
        ConfigError: no such size.
    """
    from ..errors import ConfigError
    from ..faces.prepare import prepare_references

    if size % 8 or not 32 <= size <= 4096:
        raise ConfigError(f"size must be a multiple of 8 from 32 to 4096 px, got {size}")
    config, notes = _config(arguments, family, class_noun)
    recognizer = open_recognizer(arguments, family)
    prepared = prepare_references(pictures, size, config, recognizer=recognizer)
    console.note([*notes, *prepared.notes])
    return prepared


def open_recognizer(arguments: argparse.Namespace, family: str = "") -> Recognizer | None:
    """The recogniser that was named; on the miniature its own judge."""
    from ..faces.recognizer import OnnxRecognizer

    if arguments.recognizer is not None:
        return OnnxRecognizer([arguments.recognizer])
    if family == "miniature":
        from ..miniature.trial.judges import bundled_recognizer

        return bundled_recognizer()
    return None


def _config(arguments: argparse.Namespace, family: str, class_noun: str) -> tuple[PrepareConfig, list[str]]:
    """The settings, with the detector that suits the base where none was named."""
    from ..faces.prepare import PrepareConfig

    if "detector" in given_values(PrepareConfig, arguments):
        return config_from_flags(PrepareConfig, arguments), []
    if family == "miniature":
        # Its predictor has only ever seen whole pictures, as its own renderer draws them.
        return config_from_flags(PrepareConfig, arguments, detector="already-cropped"), []
    if class_noun.lower() not in _PEOPLE:
        note = f"the subject is a {class_noun!r}, so no face is looked for; --detector auto looks for one"
        return config_from_flags(PrepareConfig, arguments, detector="already-cropped"), [note]
    return config_from_flags(PrepareConfig, arguments), []


def add_prepare(parser: argparse.ArgumentParser) -> None:
    """Flags of `prepare`."""
    add_reference_flags(parser)
    parser.add_argument(
        "--size", type=whole_number, default=512, metavar="N", help="side of the crops, px (default: 512)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("prepared"), metavar="DIR", help="crops and previews (default: prepared)"
    )


def prepare(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Crops, numbered previews and a report."""
    from ..pictures.files import save_image

    results = console.open_results(arguments.out)
    pictures = read_pictures(arguments)
    prepared = prepare_subject(arguments, console, pictures, "", arguments.size, "face")
    report = prepared.report()
    for number, (one, entry) in enumerate(zip(prepared.pictures, report["pictures"], strict=True), start=1):
        stem = f"{number:02d}-{Path(one.picture.name).stem}"
        if one.crop is not None:
            entry["crop"] = str(results.keep(f"{stem}-face.png", partial(save_image, image=one.crop)))
        entry["preview"] = str(results.keep(f"{stem}-preview.png", partial(save_image, image=one.preview())))
    results.close()
    return Outcome(report, _text(report))


def _text(report: dict[str, Any]) -> str:
    lines = [f"looked with {report['detector']}"]
    for one in report["pictures"]:
        lines.append(f"{one['file']}: {len(one['faces'])} face{'s'[: len(one['faces']) != 1]}, used: {one['used']}")
        for face in one["faces"]:
            left, top, right, bottom = face["box"]
            angle = ", ".join(f"{name} {value:.0f}" for name, value in face["angle"].items()) or "not known"
            lines.append(
                f"  {face['number']}{' <-' if face['chosen'] else '   '} {right - left:.0f}x{bottom - top:.0f} px at "
                f"({left:.0f}, {top:.0f}), score {face['score']:.2f}, angle: {angle}"
            )
        lines.append(f"  quality {one['quality']:.2f}: {'; '.join(one['remarks']) or 'good'}")
        lines += [f"  {one[name]}" for name in ("crop", "preview") if name in one]
    if len(report["pictures"]) > 1:
        lines.append(f"agreement: {report['agreement']}")
    return "\n".join(lines)
