"""`hyperdream corpus collect`: a folder of photographs to a corpus of people, the ground of a predictor's training."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base_flags import BaseChoice, add_device_flag
from ..console import Console, Outcome
from ..flags import add_config_flags, config_from_flags, given_values, place

if TYPE_CHECKING:
    from ...pipelines.corpora.photographs import Describe, Photographs


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus collect`."""
    from ...faces.prepare import PrepareConfig
    from ...pipelines.corpora.collect import CollectConfig
    from ...pipelines.corpora.photographs import PhotographsConfig

    parser.add_argument(
        "folder", metavar="FOLDER", type=place, help="a subfolder of photographs for each person, or one of each"
    )
    add_out(parser)
    parser.add_argument(
        "--base", metavar="BASE",
        help="base that the corpus is for: decides the size, and captions where the base's words are on record",
    )  # fmt: skip
    add_device_flag(parser)
    add_config_flags(parser, CollectConfig)
    add_config_flags(parser, PhotographsConfig)
    add_config_flags(parser.add_argument_group("faces"), PrepareConfig, skip=("on_no_face",))


def add_out(parser: argparse.ArgumentParser) -> None:
    """The folder of a corpus."""
    parser.add_argument(
        "--out", type=place, default=Path("corpus"), metavar="DIR",
        help="folder of the corpus; the same command goes on where it stopped (default: corpus)",
    )  # fmt: skip


def run(arguments: argparse.Namespace, console: Console) -> Outcome:
    """The corpus, and what is in it."""
    from ...pipelines.corpora.collect import CollectConfig, collect
    from ...pipelines.corpora.corpus import Corpus
    from ...pipelines.corpora.report import report_of, text_of

    console.open_results(arguments.out)
    given: dict[str, Any] = {}
    if arguments.base is not None and "size" not in given_values(CollectConfig, arguments):
        given["size"] = _choice(arguments).family.picture_size
    config = config_from_flags(CollectConfig, arguments, **given)
    source = _source(arguments, console)
    console.on_stop = f"finished shards are kept in {arguments.out}; the same command goes on from there"
    with console.progress("collecting", "picture") as progress:
        collect(source, arguments.out, config, progress, console.say)
    report = report_of(Corpus.open(arguments.out))
    return Outcome(report, text_of(report))


def _choice(arguments: argparse.Namespace) -> BaseChoice:
    return BaseChoice(source=arguments.base, device=arguments.device, dtype="fp32")


def _source(arguments: argparse.Namespace, console: Console) -> Photographs:
    """The photographs, and who prepares and describes them."""
    from ...faces.detectors import open_detector
    from ...faces.prepare import PrepareConfig
    from ...miniature.companions import companions_of
    from ...pipelines.corpora.photographs import Photographs, PhotographsConfig

    companions = companions_of(_choice(arguments).family.name if arguments.base is not None else "")
    prepare = replace(config_from_flags(PrepareConfig, arguments), on_no_face="skip")
    if companions.whole_pictures and "detector" not in given_values(PrepareConfig, arguments):
        prepare = replace(prepare, detector="already-cropped")
    detector, notes = open_detector(prepare.detector, prepare.face_models)
    console.note(notes)
    describe, described_by = _describe(arguments, console) if companions.describe is not None else (None, "")
    return Photographs(
        folder=arguments.folder,
        config=config_from_flags(PhotographsConfig, arguments),
        prepare=prepare,
        detector=detector,
        describe=describe,
        described_by=described_by,
    )


def _describe(arguments: argparse.Namespace, console: Console) -> tuple[Describe, str]:
    """Reads captions off photographs by the base, and its name."""
    import torch
    from torch import Tensor

    from ...miniature.companions import companions_of
    from ...pictures.files import resize

    base = _choice(arguments).load(console)
    side = base.family.picture_size

    def describe(crops: Tensor) -> list[str]:
        at_size = torch.stack([resize(one, side, side) for one in crops])
        return list(companions_of(base.family.name).read_captions(base, at_size))

    return describe, f"{base.family.name} {base.fingerprint()[:12]}"
