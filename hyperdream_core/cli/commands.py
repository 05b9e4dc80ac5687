"""The list of commands; nothing heavy is loaded until one is chosen."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import personalizing, preparing, subject, world
from .console import Console, Outcome


@dataclass(frozen=True)
class Command:
    """One word after `hyperdream`."""

    summary: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Console], Outcome] | None
    """None if only the commands below it run"""
    usage: str = ""
    """what it cannot do without"""
    details: str = ""

    @property
    def description(self) -> str:
        return self.details or f"{self.summary[0].upper()}{self.summary[1:]}."


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="file or diffusers folder")


def _inspect(arguments: argparse.Namespace, console: Console) -> Outcome:
    from .inspection import format_report, inspect_file

    reports = [inspect_file(path) for path in arguments.files]
    for report in reports:
        if not report["readable"]:
            console.say(f"hyperdream: {report['problem']}")
    text = "\n".join(format_report(report) for report in reports if report["readable"])
    readable = all(report["readable"] for report in reports)
    return Outcome({"files": reports}, text, ok=readable)


COMMANDS = {
    "personalize": Command(
        "pictures of a subject to an identity, a LoRA, pictures, a grid and a report",
        personalizing.add_personalize,
        personalizing.personalize,
        "PICTURE [PICTURE ...] --prompt TEXT [TEXT ...]",
        "Predict the subject's identity, polish it, draw the prompts with it, and write everything to a folder.",
    ),
    "prepare": Command(
        "photographs to upright face crops, and what is wrong with them",
        preparing.add_prepare,
        preparing.prepare,
        "PICTURE [PICTURE ...]",
        "Find the faces, choose and align one in each picture, and say what speaks against it as a reference.",
    ),
    "predict": Command(
        "pictures to an identity, in one pass", subject.add_predict, subject.predict, "PICTURE [PICTURE ...]"
    ),
    "finetune": Command(
        "polish an identity, or make one from nothing", subject.add_polish, subject.polish, "PICTURE [PICTURE ...]"
    ),
    "sample": Command(
        "draw prompts with an identity, a LoRA or the base alone",
        subject.add_sample,
        subject.sample,
        "--prompt TEXT [TEXT ...]",
    ),
    "export": Command("write an identity as a LoRA for other programs", subject.add_export, subject.export, "IDENTITY"),
    "inspect": Command(
        "say what a file is, or why it is refused",
        _add_inspect,
        _inspect,
        "FILE [FILE ...]",
        "Say what an identity, predictor, LoRA, checkpoint or picture holds. Refused files give exit code 1.",
    ),
    "evaluate": Command("judge all methods on the miniature's unseen people", world.add_evaluate, world.evaluate),
    "miniature": Command("build the embedded world's weights, or render its portraits", world.add_miniature, None),
}
