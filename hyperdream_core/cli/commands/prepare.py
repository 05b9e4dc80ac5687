"""`hyperdream prepare`: photographs to upright face crops, and what is wrong with them."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from ..console import Console, Outcome
from ..flags import place, whole_number
from ..reference_flags import References, add_reference_flags


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `prepare`."""
    add_reference_flags(parser)
    parser.add_argument(
        "--size", type=whole_number, default=512, metavar="N", help="side of the crops, px (default: 512)"
    )
    parser.add_argument(
        "--out", type=place, default=Path("prepared"), metavar="DIR", help="crops and previews (default: prepared)"
    )


def run(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Crops, numbered previews and a report."""
    return prepare(console, References.of(arguments), arguments.size, arguments.out)


def prepare(console: Console, references: References, size: int, out: Path) -> Outcome:
    """Crops of `size` px, numbered previews and a report, in a folder."""
    from ...formats.file_names import plain_name
    from ...pictures.files import save_image
    from ...pipelines.before_work import bytes_of_pictures

    stems = [f"{number:02d}-{plain_name(path.stem)}" for number, path in enumerate(references.paths, start=1)]
    names = [f"{stem}-{what}.png" for stem in stems for what in ("face", "preview")]
    results = console.open_results(out, names, bytes_of_pictures(len(names), max(size, 512)))
    prepared = references.prepare(console, references.read(), "", "face", size).prepared
    report = prepared.report()
    for stem, one, entry in zip(stems, prepared.pictures, report["pictures"], strict=True):
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
