"""The list of commands; nothing heavy is loaded until one is chosen."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .commands import (
    corpus_collect,
    corpus_encode,
    corpus_inspect,
    corpus_invent,
    draw,
    evaluate,
    export,
    inspect,
    miniature_build,
    miniature_render,
    personalize,
    polish,
    predict,
    prepare,
    train_hypernetwork,
)
from .console import Console, Outcome

AddFlags = Callable[[argparse.ArgumentParser], None]
Run = Callable[[argparse.Namespace, Console], Outcome]


@dataclass(frozen=True)
class Command:
    """One word after `hyperdream`."""

    summary: str
    add_flags: AddFlags
    run: Run | None
    """None if only the commands below it run"""
    usage: str = ""
    """what it cannot do without"""
    details: str = ""
    older: str = ""
    """what it was called in 0.1.0; still understood"""
    below: Mapping[str, Command] = field(default_factory=dict)
    """the commands that follow it as a second word"""

    @property
    def description(self) -> str:
        return self.details or f"{self.summary[0].upper()}{self.summary[1:]}."


def _no_flags(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


COMMANDS = {
    "personalize": Command(
        "pictures of a subject to an identity, a LoRA, pictures, a grid and a report",
        personalize.add_flags,
        personalize.run,
        "PICTURE [PICTURE ...] --prompt TEXT [TEXT ...]",
        "Predict the subject's identity, polish it, draw the prompts with it, and write everything to a folder.",
    ),
    "prepare": Command(
        "photographs to upright face crops, and what is wrong with them",
        prepare.add_flags,
        prepare.run,
        "PICTURE [PICTURE ...]",
        "Find the faces, choose and align one in each picture, and say what speaks against it as a reference.",
    ),
    "predict": Command("pictures to an identity, in one pass", predict.add_flags, predict.run, "PICTURE [PICTURE ...]"),
    "polish": Command(
        "sharpen an identity on its pictures, or make one from scratch",
        polish.add_flags,
        polish.run,
        "PICTURE [PICTURE ...]",
        older="finetune",
    ),
    "draw": Command(
        "pictures of prompts, with an identity, a LoRA or the base alone",
        draw.add_flags,
        draw.run,
        "--prompt TEXT [TEXT ...]",
        older="sample",
    ),
    "export": Command("write an identity as a LoRA for other programs", export.add_flags, export.run, "IDENTITY"),
    "inspect": Command(
        "say what a file is, or why it is refused",
        inspect.add_flags,
        inspect.run,
        "FILE [FILE ...]",
        "Say what an identity, predictor, LoRA, checkpoint or picture holds. Refused files give exit code 1.",
    ),
    "evaluate": Command("judge all methods on the miniature's unseen people", evaluate.add_flags, evaluate.run),
    "corpus": Command(
        "collect the people that a predictor is trained on, and encode them for a base",
        _no_flags,
        None,
        below={
            "collect": Command(
                "a folder of photographs to a corpus of people; resumable",
                corpus_collect.add_flags,
                corpus_collect.run,
                "FOLDER",
                "Find the face in every photograph, cut it out, and keep it with its caption; a photograph without one "
                "is listed with the reason.",
            ),
            "invent": Command(
                "people that the base itself makes up, drawn in several contexts, with their identities; resumable",
                corpus_invent.add_flags,
                corpus_invent.run,
                details="An identity drawn at random is a person. The base draws each in several contexts, pictures "
                "of somebody else are left out, and the identities are kept as what a predictor should answer.",
            ),
            "encode": Command(
                "a base's latents of its pictures, and an image encoder's view of its references; resumable",
                corpus_encode.add_flags,
                corpus_encode.run,
                "DIR",
            ),
            "inspect": Command(
                "what is in a corpus, what was rejected, and what is missing",
                corpus_inspect.add_flags,
                corpus_inspect.run,
                "DIR",
            ),
        },
    ),
    "train": Command(
        "train a predictor for a checkpoint",
        _no_flags,
        None,
        below={
            "hypernetwork": Command(
                "a corpus and a checkpoint to a predictor, in one file; resumable",
                train_hypernetwork.add_flags,
                train_hypernetwork.run,
                "--corpus DIR",
                "Learn to see in a reference how the checkpoint must change to draw its subject. With --plan it only "
                "says what this would cost.",
            ),
        },
    ),
    "miniature": Command(
        "build the embedded world's weights, or render its portraits",
        _no_flags,
        None,
        below={
            "build": Command(
                "train everything under weights/miniature from nothing; resumable",
                miniature_build.add_flags,
                miniature_build.run,
            ),
            "render": Command("draw portraits of invented subjects", miniature_render.add_flags, miniature_render.run),
        },
    ),
}
