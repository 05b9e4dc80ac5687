"""`hyperdream corpus inspect`: what is in a corpus, what was rejected and why, what is missing, and what is damaged."""

from __future__ import annotations

import argparse

from ..console import Console, Outcome
from ..flags import place


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `corpus inspect`."""
    parser.add_argument("corpus", metavar="DIR", type=place, help="folder of the corpus")
    parser.add_argument("--verify", action="store_true", help="also read every byte, and compare it with its digest")


def run(arguments: argparse.Namespace, console: Console) -> Outcome:
    """The report; damaged files make it a refusal."""
    from ...pipelines.corpora.corpus import Corpus
    from ...pipelines.corpora.report import report_of, text_of

    corpus = Corpus.open(arguments.corpus)
    report = report_of(corpus)
    text = text_of(report)
    if arguments.verify:
        with console.progress("reading", "shard") as progress:
            damaged = [str(error) for error in corpus.verify(progress)]
        report["damaged"] = damaged
        text += "\n" + ("\n".join(["damaged:", *(f"  {one}" for one in damaged)]) if damaged else "every byte is whole")
    return Outcome(report, text, ok=not report.get("damaged"))
