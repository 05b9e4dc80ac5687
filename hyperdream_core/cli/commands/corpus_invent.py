"""`hyperdream corpus invent`: a corpus of people that nobody has photographed, drawn by the base itself."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..base_flags import BaseChoice, add_base_flags
from ..console import Console, Outcome
from ..flags import add_config_flags, config_from_flags, finite_number, place, whole_number
from .corpus_collect import add_out

if TYPE_CHECKING:
    from ...faces.recognizer import Recognizer
    from ...pipelines.corpora.invented import Invented
    from ...pipelines.corpora.prior import Prior
    from ...pipelines.diffusers.diffusers_base import DiffusersBase

_DRAWING = ("seed", "size")
"""Settings of drawing that follow from the person and the base."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus invent`."""
    from ...pipelines.corpora.invented import InventConfig
    from ...pipelines.drawing.draw import DrawConfig

    add_base_flags(parser, may_be_quantized=False)
    add_out(parser)
    add_config_flags(parser, InventConfig)
    group = parser.add_argument_group("who they are")
    group.add_argument(
        "--identities", type=place, metavar="DIR",
        help="folder of identities, such as a predictor's answers: people are drawn from their Gaussian (default: "
        "random directions)",
    )  # fmt: skip
    group.add_argument(
        "--spread", type=finite_number, default=1.0, metavar="X",
        help="how far apart they are: in standard deviations of the identities, or else the size of a layer's change "
        "as a share of its weights (default: 1)",
    )  # fmt: skip
    group.add_argument(
        "--rank", type=whole_number, default=0, metavar="N", help="of their identities (default: 1, or the folder's)"
    )
    group.add_argument(
        "--contexts", type=place, metavar="FILE", help="what the pictures show besides, one a line (default: a few)"
    )
    group.add_argument(
        "--recognizer", type=place, metavar="FILE",
        help="leaves out pictures of somebody else: ArcFace, AuraFace or SFace in ONNX (default: the base's own)",
    )  # fmt: skip
    group.add_argument(
        "--filter", action=argparse.BooleanOptionalAction, default=True, help="leave out pictures of somebody else"
    )
    add_config_flags(parser.add_argument_group("drawing"), DrawConfig, skip=_DRAWING)


def run(arguments: argparse.Namespace, console: Console) -> Outcome:
    """The corpus with its true identities, and what is in it."""
    from ...pipelines.corpora.collect import CollectConfig, collect
    from ...pipelines.corpora.corpus import Corpus
    from ...pipelines.corpora.invented import keep_identities
    from ...pipelines.corpora.report import report_of, text_of

    console.open_results(arguments.out)
    source = _source(arguments, console)
    config = CollectConfig(size=source.base.family.picture_size, licence="drawn by the base; shows nobody")
    console.on_stop = f"finished shards are kept in {arguments.out}; the same command goes on from there"
    with console.progress("inventing", "person") as progress:
        corpus = collect(source, arguments.out, config, progress, console.say)
    keep_identities(corpus, source, console.say)
    report = report_of(Corpus.open(arguments.out))
    return Outcome(report, text_of(report))


def _source(arguments: argparse.Namespace, console: Console) -> Invented:
    from ...faces.detectors import open_detector
    from ...pipelines.corpora.invented import CONTEXTS, InventConfig, Invented
    from ...pipelines.drawing.draw import DrawConfig

    config = config_from_flags(InventConfig, arguments)
    drawing = config_from_flags(DrawConfig, arguments)
    contexts = CONTEXTS if arguments.contexts is None else _contexts(arguments.contexts)
    base = BaseChoice.of(arguments).load(console)
    recognizer, detector = _recognizer(arguments, base.family.name), None
    if recognizer is not None and recognizer.needs_landmarks:
        detector, notes = open_detector()
        console.note(notes)
    if recognizer is None:
        console.note(["nobody tells whether the pictures show one person, so all are kept; --recognizer names one"])
    return Invented(
        base=base, fingerprint=base.fingerprint(), prior=_prior(arguments, base), config=config, drawing=drawing,
        contexts=contexts, recognizer=recognizer, detector=detector,
    )  # fmt: skip


def _recognizer(arguments: argparse.Namespace, family: str) -> Recognizer | None:
    """Who tells people apart: the one that was named, or the family's own."""
    from ...faces.recognizer import OnnxRecognizer
    from ...miniature.companions import companions_of

    if not arguments.filter:
        return None
    if arguments.recognizer is not None:
        return OnnxRecognizer([arguments.recognizer])
    return companions_of(family).own_recognizer()


def _prior(arguments: argparse.Namespace, base: DiffusersBase) -> Prior:
    from ...errors import ConfigError
    from ...formats.identity_file import read_identity
    from ...pipelines.corpora.prior import GaussianPrior, LearnedPrior

    if not 0 < arguments.spread <= 100 or not 0 <= arguments.rank <= 128:
        raise ConfigError(
            f"spread must lie above 0 and at most at 100, rank in 0..128; got {arguments.spread:g}, {arguments.rank}"
        )
    if arguments.identities is not None:
        files = sorted(arguments.identities.glob("*.safetensors"))
        identities = [read_identity(file, base.family.name) for file in files]
        return LearnedPrior(identities, arguments.spread, arguments.rank)
    weights = base.unet.state_dict()
    norms = {layer.name: float(weights[f"{layer.name}.weight"].float().norm()) for layer in base.family.layers()}
    prior = GaussianPrior(family=base.family.name, norms=norms, spread=arguments.spread, rank=max(1, arguments.rank))
    return prior


def _contexts(path: Path) -> tuple[str, ...]:
    from ...errors import ConfigError
    from ...pipelines.before_work import check_texts
    from ...regular_file import read_bounded

    try:
        lines = read_bounded(path, 1_000_000).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is no UTF-8 ({error.reason}); save it as that") from error
    contexts = tuple(line.strip() for line in lines if line.strip())
    check_texts(contexts=contexts)
    if not contexts:
        raise ConfigError(f"{path}: holds no context; write one a line, such as 'smiling, at the beach'")
    return contexts
