"""The subject's place in a prompt: `[V]` stands for the identifier, as in the paper's "a [V] face"."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from ..errors import ConfigError, PromptError

PLACEHOLDER = "[V]"
_SYNTAX = re.compile(
    r"<\w{1,20}:[^<>]{1,100}>"  # networks
    r"|\(+[^()\[\]]{1,60}:\s*[0-9.]{1,9}\s*\)+"  # (word:1.2)
    r"|\({2,9}[^()\[\]]{1,60}\){2,9}"  # ((word))
    r"|\[[^()\[\]]{1,60}\]"  # [word], [from:to:when]
    r"|\b(?:BREAK|AND)\b"
)
_LONGEST = 5000
"""characters of a prompt that are looked at"""


def insert_identifier(
    prompt: str, identifier: str = "sks", class_noun: str = "face", missing: Literal["refuse", "insert"] = "refuse"
) -> str:
    """The prompt with the identifier in the place of `[V]`.

    Args:
        prompt: as the user wrote it.
        identifier: the rare word that stands for the subject.
        class_noun: what the subject is.
        missing: what to do with a prompt that names nobody: refuse it with a proposal, or follow that proposal.

    Raises:
        PromptError: neither `[V]` nor the identifier is in the prompt, and it is not to be inserted.
    """
    prompt = re.sub(re.escape(PLACEHOLDER), lambda _: identifier, prompt, flags=re.IGNORECASE)
    if names_subject(prompt, identifier):
        return prompt
    proposal = _with_identifier(prompt, identifier, class_noun)
    if missing == "insert":
        return proposal
    raise PromptError(
        f"the prompt {prompt!r} does not name the subject, expected {PLACEHOLDER} or {identifier!r} in it; "
        f"write {proposal!r}, or ask for the identifier to be inserted"
    )


def names_subject(prompt: str, identifier: str) -> bool:
    """Whether the identifier, or `[V]`, is a word of the prompt."""
    words = f"{re.escape(PLACEHOLDER)}|(?<!\\w){re.escape(identifier)}(?!\\w)"
    return re.search(words, prompt, flags=re.IGNORECASE) is not None


def without_identifier(prompt: str, identifier: str) -> str:
    """The prompt about a subject in general, as the base alone is asked: "a sks face" becomes "a face"."""
    words = f"(?:{re.escape(PLACEHOLDER)}|(?<!\\w){re.escape(identifier)}(?!\\w))\\s*"
    return re.sub(words, "", prompt, flags=re.IGNORECASE).strip()


def _with_identifier(prompt: str, identifier: str, class_noun: str) -> str:
    """In front of the class noun where the prompt has it, else in front of everything."""
    named, count = re.subn(
        rf"(?<!\w){re.escape(class_noun)}(?!\w)",
        lambda match: f"{identifier} {match[0]}",
        prompt,
        count=1,
        flags=re.IGNORECASE,
    )
    if count:
        return named
    return f"a {identifier} {class_noun}, {prompt.strip()}" if prompt.strip() else f"a {identifier} {class_noun}"


def foreign_syntax(prompts: Iterable[str], most: int = 5) -> list[str]:
    """Pieces of prompts that Automatic1111, ComfyUI or others would not read as words, each once, the first few."""
    found = (match[0] for prompt in prompts for match in _SYNTAX.finditer(prompt[:_LONGEST]))
    # The identifier's own place is ours.
    return [piece for piece in dict.fromkeys(found) if piece.lower() != PLACEHOLDER.lower()][:most]


def captions_of_lines(caption: str, pictures: int) -> tuple[str, ...]:
    """One caption for each picture, of a text with one line for all or one for each; none of an empty text.

    Raises:
        ConfigError: another number of lines.
    """
    lines = tuple(line.strip() for line in caption.strip().splitlines())
    if not lines:
        return ()
    if len(lines) not in (1, pictures):
        raise ConfigError(
            f"the caption has {len(lines)} lines for {pictures} pictures; write one line for all, or one for each"
        )
    return lines * pictures if len(lines) == 1 else lines
