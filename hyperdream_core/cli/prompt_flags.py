"""The flags of every command that draws: prompts as a user types them, with `[V]` for the subject."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

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
        "--allow-unknown-words",
        action="store_true",
        help="draw words that the base is known to have never been taught",
    )


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What these flags ask for."""

    texts: tuple[str, ...]
    inserts_identifier: bool
    allows_unknown_words: bool

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Prompts:
        """Of a command line."""
        return cls(
            texts=tuple(arguments.prompts),
            inserts_identifier=arguments.insert_identifier,
            allows_unknown_words=arguments.allow_unknown_words,
        )

    def resolved(self, identifier: str, class_noun: str, needs_subject: bool = True) -> list[str]:
        """The prompts with the identifier in the place of `[V]`.

        Args:
            identifier: the rare word that calls the subject.
            class_noun: what the subject is.
            needs_subject: False where the base draws alone, or nobody knows its word, so that a prompt need not name
                anybody.

        Raises:
            PromptError: a prompt does not name the subject.
        """
        from ..pipelines.prompts import PLACEHOLDER, insert_identifier

        if not needs_subject:
            return [prompt.replace(PLACEHOLDER, identifier) for prompt in self.texts]
        if self.inserts_identifier:
            return [insert_identifier(prompt, identifier, class_noun, missing="insert") for prompt in self.texts]
        try:
            return [insert_identifier(prompt, identifier, class_noun) for prompt in self.texts]
        except PromptError as error:
            raise PromptError(f"{error}: --insert-identifier") from error

    def syntax_notes(self, family: str) -> list[str]:
        """What to say of other programs' prompt syntax, which the text encoder takes literally."""
        from ..miniature.companions import companions_of
        from ..pipelines.prompts import foreign_syntax

        # Where the words are on record, such words are refused.
        found = [] if companions_of(family).unknown_words is not None else foreign_syntax(self.texts)
        if not found:
            return []
        return [
            f"the prompts hold {', '.join(map(repr, found))}, which other programs take for weights or breaks; here it "
            "is read as plain text. Leave it out, or draw in ComfyUI or the web UI, where such prompts act"
        ]

    def check_words(self, prompts: Sequence[str], identifier: str, family: str) -> None:
        """Refuse words that the base was never taught, where its vocabulary is on record.

        Raises:
            PromptError: names the words and all that it knows.
        """
        from ..bases import get_base
        from ..miniature.companions import companions_of

        companions = companions_of(family)
        if companions.unknown_words is None or self.allows_unknown_words:
            return
        for prompt in prompts:
            # The identifier is known whatever it is.
            unknown = [word for word in companions.unknown_words(prompt) if word != identifier.lower()]
            if unknown:
                raise PromptError(
                    f"prompt {prompt!r} has words that {get_base(family).title} was never taught: "
                    f"{', '.join(map(repr, dict.fromkeys(unknown)))}. It knows: {companions.vocabulary}. Use those, or "
                    "add --allow-unknown-words"
                )
