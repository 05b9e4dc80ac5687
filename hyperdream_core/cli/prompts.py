"""Prompts as a user types them: `[V]` is the subject, and words that the miniature never learnt are named."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..errors import PromptError

EXAMPLE = "a [V] face, smiling, wearing a hat, at the beach, photo"


def add_prompt_flags(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """--prompt and what to do with prompts that cannot work."""
    parser.add_argument(
        "--prompt",
        dest="prompts",
        metavar="TEXT",
        nargs="+",
        action="extend",
        required=required,
        help=f'what to draw, [V] being the subject: "{EXAMPLE}"; several texts make several pictures',
    )
    parser.add_argument(
        "--insert-identifier", action="store_true", help="put the identifier into prompts that lack it, and say so"
    )
    parser.add_argument(
        "--allow-unknown-words", action="store_true", help="let the miniature draw words that it was never taught"
    )


def resolve_prompts(
    arguments: argparse.Namespace, identifier: str, class_noun: str, needs_subject: bool = True
) -> list[str]:
    """The prompts of the command line with the identifier in the place of `[V]`.

    Args:
        arguments: with the flags of `add_prompt_flags`.
        identifier: the rare word that calls the subject.
        class_noun: what the subject is.
        needs_subject: False where the base draws alone, so that a prompt need not name anybody.

    Raises:
        PromptError: a prompt does not name the subject.
    """
    from ..pipelines.prompts import PLACEHOLDER, insert_identifier

    if not needs_subject:
        return [prompt.replace(PLACEHOLDER, identifier) for prompt in arguments.prompts]
    if arguments.insert_identifier:
        return [insert_identifier(prompt, identifier, class_noun, missing="insert") for prompt in arguments.prompts]
    try:
        return [insert_identifier(prompt, identifier, class_noun) for prompt in arguments.prompts]
    except PromptError as error:
        raise PromptError(f"{error}: --insert-identifier") from error


def check_words(arguments: argparse.Namespace, prompts: Sequence[str], identifier: str, family: str) -> None:
    """Refuse words that the miniature was never taught, if it is the base; the identifier is known whatever it is.

    Raises:
        PromptError: names the words and all that it knows.
    """
    from ..miniature.world.captions import ATTRIBUTES, NOUNS, unknown_words

    if family != "miniature" or arguments.allow_unknown_words:
        return
    for prompt in prompts:
        unknown = [word for word in unknown_words(prompt) if word != identifier.lower()]
        if unknown:
            known = "; ".join(", ".join(filter(None, values)) for values in ATTRIBUTES.values())
            raise PromptError(
                f"prompt {prompt!r} has words that the miniature was never taught: "
                f"{', '.join(map(repr, dict.fromkeys(unknown)))}. It knows: a [V] {' or '.join(NOUNS)}; {known}. "
                "Use those, or add --allow-unknown-words"
            )
