"""`hyperdream draw`: prompts to pictures, with an identity, a LoRA or the base alone."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..base_flags import BaseChoice, add_base_flags
from ..console import Console, Outcome
from ..flags import add_config_flags, config_from_flags, place, whole_number
from ..prompt_flags import Prompts, add_prompt_flags

if TYPE_CHECKING:
    from ...pipelines.drawing.draw import DrawConfig
    from ...pipelines.drawing.subjects import OneAdapter


_MOST_OF_A_PROMPT = 1000


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `draw`."""
    from ...pipelines.drawing.draw import DrawConfig

    parser.add_argument(
        "--identity", type=place, metavar="FILE", help="identity or LoRA of the subject (default: the base alone)"
    )
    parser.add_argument(
        "--identifier",
        default="",
        metavar="WORD",
        help="trigger word of a LoRA, in the place of [V] (default: what the file says, if it says one)",
    )
    parser.add_argument(
        "--neutral",
        type=place,
        metavar="FILE",
        help="identity predicted from a plain grey picture, which guidance 'reference-null' leads away from",
    )
    add_prompt_flags(parser)
    parser.add_argument(
        "--count", type=whole_number, default=1, metavar="N", help="pictures of each prompt (default: 1)"
    )
    add_base_flags(parser)
    parser.add_argument(
        "--out", type=place, default=Path("pictures"), metavar="DIR", help="folder to write to (default: pictures)"
    )
    add_config_flags(parser, DrawConfig)


@dataclass(frozen=True, kw_only=True)
class _Job:
    identity: Path | None
    identifier: str
    neutral: Path | None
    prompts: Prompts
    count: int
    base: BaseChoice
    config: DrawConfig
    out: Path


def run(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Prompts to PNG files."""
    from ...errors import ConfigError
    from ...pipelines.drawing.draw import DrawConfig

    config = config_from_flags(DrawConfig, arguments)
    if not 1 <= arguments.count <= _MOST_OF_A_PROMPT:
        raise ConfigError(f"count must lie in 1..{_MOST_OF_A_PROMPT}, got {arguments.count}; draw the rest with --seed")
    job = _Job(
        identity=arguments.identity,
        identifier=arguments.identifier,
        neutral=arguments.neutral,
        prompts=Prompts.of(arguments),
        count=arguments.count,
        base=BaseChoice.of(arguments),
        config=config,
        out=arguments.out,
    )
    return _draw(job, console)


def _draw(job: _Job, console: Console) -> Outcome:
    from ...pictures.files import save_image
    from ...pipelines.before_work import bytes_of_pictures, check_prompts, check_texts
    from ...pipelines.drawing.draw import draw
    from ...pipelines.drawing.subjects import Subject

    results = console.open_results(job.out)
    check_texts(prompt=job.prompts.texts, identifier=job.identifier, negative_prompt=job.config.negative_prompt)
    family = job.base.family
    found = _read_adapter(job.identity, family.name, job.identifier, console)
    neutral = _read_adapter(job.neutral, family.name, "", console).adapter
    subject = None
    if found.adapter is not None and not found.is_called:
        console.note([_about_trigger(job.prompts.texts, found.identifier)])
    if found.adapter is not None:
        subject = Subject(adapter=found.adapter, identifier=found.identifier, neutral=neutral)
    prompts = job.prompts.resolved(found.identifier, found.class_noun, needs_subject=found.is_called)
    job.prompts.check_words(prompts, found.identifier, family.name)
    names = [f"{number:02d}-{_file_name(prompt)}.png" for number, prompt in enumerate(_each(prompts, job.count), 1)]
    results.check(names, bytes_of_pictures(len(names), job.config.size or family.picture_size))
    base = job.base.load(console)
    word = found.identifier if found.is_called else ""
    console.note([*job.prompts.syntax_notes(family.name), *check_prompts(base, prompts, word)])
    prompts = _each(prompts, job.count)
    with console.progress("drawing") as progress:
        pictures = draw(base, prompts, subject, job.config, progress).cpu()
    made = []
    for index, (name, prompt, picture) in enumerate(zip(names, prompts, pictures, strict=True)):
        facts = {"prompt": prompt, "seed": str(job.config.seed + index)}
        path = results.keep(name, partial(save_image, image=picture, texts=facts))
        made.append({"file": str(path), "prompt": prompt, "seed": job.config.seed + index})
    results.close()
    return Outcome(
        {"pictures": made, "assumptions": list(base.assumptions)}, "\n".join(str(one["file"]) for one in made)
    )


@dataclass(frozen=True, kw_only=True)
class _Read:
    """An adapter from a file, and how prompts call its subject."""

    adapter: OneAdapter = None
    identifier: str = "sks"
    class_noun: str = "face"
    is_called: bool = False
    """whether prompts must name it"""


def _read_adapter(path: Path | None, family: str | None, identifier: str, console: Console) -> _Read:
    """The adapter in an identity or LoRA file for a base of that family; `identifier` is the user's word for it."""
    from ...errors import BaseMismatchError, FileFormatError
    from ...formats.identity_file import read_identity
    from ...formats.lora_file import read_lora_file
    from .inspect import header, kind_of

    if path is None:
        return _Read(identifier=identifier or "sks")
    metadata, names = header(path)
    kind = kind_of(metadata, names)
    if kind == "LoRA":
        found = read_lora_file(path, family)
        if found.note:
            console.say(f"{path.name}: {found.note}")
        # Only our own files say which word is the identifier; a stranger's phrase is taken whole, and none is made up.
        return _Read(
            adapter=found.pairs,
            identifier=identifier or found.identifier or " ".join(found.trigger_phrases),
            class_noun=found.class_noun or "face",
            is_called=bool(identifier or found.identifier),
        )
    if kind == "predictor":
        raise FileFormatError(path, "is a predictor, but an identity or a LoRA is expected. Run predict with it first.")
    identity = read_identity(path)
    if family is not None and identity.family != family:
        raise BaseMismatchError(
            f"{path.name}: was made for {identity.family!r}, but the base is {family!r}; load a base of "
            f"{identity.family!r}"
        )
    word = identifier or identity.identifier
    return _Read(adapter=identity, identifier=word, class_noun=identity.class_noun, is_called=True)


def _about_trigger(prompts: Sequence[str], phrase: str) -> str:
    """What to say about a stranger's LoRA, whose word nobody has named.

    Raises:
        PromptError: a prompt asks for that word, and the file states none.
    """
    from ...errors import PromptError
    from ...pipelines.prompts import PLACEHOLDER

    if phrase:
        return f"the LoRA's own trigger phrase is {phrase!r}; it stands for {PLACEHOLDER} in the prompts"
    for prompt in prompts:
        if PLACEHOLDER.lower() in prompt.lower():
            raise PromptError(
                f"the prompt {prompt!r} says {PLACEHOLDER}, but the LoRA states no trigger word that could take its "
                "place; name it with --identifier, or write the prompt without it"
            )
    return "the LoRA states no trigger word; the prompts are drawn as they are written"


def _each(prompts: Sequence[str], count: int) -> list[str]:
    return [prompt for prompt in prompts for _ in range(count)]


def _file_name(prompt: str) -> str:
    return re.sub(r"\W+", "-", prompt.lower()).strip("-")[:40].strip("-") or "picture"
