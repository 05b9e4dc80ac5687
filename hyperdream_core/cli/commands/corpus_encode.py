"""`hyperdream corpus encode`: a base's latents of a corpus' pictures, and an image encoder's view of its references."""

from __future__ import annotations

import argparse

from ..base_flags import BaseChoice, add_base_flags, device_named
from ..console import Console, Outcome
from ..flags import place


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus encode`."""
    parser.add_argument("corpus", metavar="DIR", type=place, help="folder of the corpus")
    add_base_flags(parser, may_be_quantized=False)
    parser.add_argument(
        "--image-encoder", type=place, metavar="PATH",
        help="also what this image encoder sees in the references: a folder of a transformers vision model (CLIP, "
        "DINOv2, SigLIP, ViT), or a predictor's file, whose own is taken",
    )  # fmt: skip


def run(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Latents and features, and what is in the corpus."""
    from ...pipelines.before_work import check_folder
    from ...pipelines.corpora.corpus import Corpus
    from ...pipelines.corpora.encode import encode_features, encode_latents
    from ...pipelines.corpora.report import report_of, text_of
    from ...pipelines.predictors.frozen_encoder import load_image_encoder

    choice = BaseChoice.of(arguments)
    corpus = Corpus.open(arguments.corpus, ("pictures",))
    corpus.check()
    check_folder(arguments.corpus)
    encoder = None
    if arguments.image_encoder is not None:
        encoder = load_image_encoder(arguments.image_encoder, device_named(arguments.device))
    base = choice.load(console)
    console.on_stop = f"finished shards are kept in {arguments.corpus}; the same command goes on from there"
    with console.progress("latents", "picture") as progress:
        encode_latents(corpus, base, progress, console.say)
    if encoder is not None:
        with console.progress("features", "picture") as progress:
            encode_features(corpus, encoder, base.family, progress, console.say)
    report = report_of(Corpus.open(arguments.corpus))
    return Outcome(report, text_of(report))
