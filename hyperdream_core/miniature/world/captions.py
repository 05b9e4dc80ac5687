"""What a caption can say: the context of a picture, its words, and the way back from words to context.

Captions have the form of HyperDreamBooth's prompts: "a [V] face, smiling, wearing a hat, at the beach, photo".
`[V]` stands for the identifier; "a face, ..." without it is a person in general.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ...pipelines.base import Base
from ...pipelines.describe import describe

IDENTIFIER = "sks"
"""The rare token that [V] stands for: one token of CLIP's vocabulary, and no word of English."""

EXPRESSIONS = ("calm", "smiling", "sad", "surprised")
ACCESSORIES = ("", "wearing glasses", "wearing a hat", "wearing headphones", "wearing a scarf")
BACKGROUNDS = ("in a studio", "at the beach", "in a forest", "in the city at night", "in the mountains", "at sunset")
STYLES = ("photo", "watercolour", "comic", "sepia")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "expression": EXPRESSIONS,
    "accessory": ACCESSORIES,
    "background": BACKGROUNDS,
    "style": STYLES,
}
NOUNS = ("face", "pet")


@dataclass(frozen=True)
class Context:
    """What captions name, as indices (b,) into the tables above."""

    expression: Tensor
    accessory: Tensor
    background: Tensor
    style: Tensor

    def __len__(self) -> int:
        return int(self.expression.shape[0])

    def __getitem__(self, index: Tensor | slice) -> Context:
        return Context(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def random_context(count: int, generator: torch.Generator) -> Context:
    """Contexts drawn uniformly, one per picture."""
    return Context(**{name: _choice(len(values), count, generator) for name, values in ATTRIBUTES.items()})


def reference_context(count: int, generator: torch.Generator) -> Context:
    """Contexts of reference photographs: a plain photo with nothing on the head, any expression, any background."""
    context = random_context(count, generator)
    none = torch.zeros(count, dtype=torch.long)
    return Context(context.expression, none, context.background, none)


def make_captions(
    context: Context,
    noun: str = "face",
    identifier: str | None = IDENTIFIER,
    dropped: Tensor | None = None,
) -> list[str]:
    """Captions of a batch of contexts.

    Args:
        context: (b,) indices.
        noun: class noun, one of `NOUNS`.
        identifier: word before the noun; None for a subject in general.
        dropped: (b, 4) booleans; True leaves that attribute unsaid.
    """
    subject = f"a {identifier} {noun}" if identifier else f"a {noun}"
    captions = []
    for row in range(len(context)):
        parts = [subject]
        for column, (name, values) in enumerate(ATTRIBUTES.items()):
            word = values[int(getattr(context, name)[row])]
            if word and not (dropped is not None and bool(dropped[row, column])):
                parts.append(word)
        captions.append(", ".join(parts))
    return captions


def parse_caption(caption: str) -> dict[str, int]:
    """Attributes that a caption names, as indices; an accessory left unsaid means none."""
    parts = [part.strip().lower() for part in caption.split(",")]
    found = {"accessory": 0}
    for name, values in ATTRIBUTES.items():
        for index, word in enumerate(values):
            if word and word in parts:
                found[name] = index
    return found


def describe_references(base: Base, references: Tensor, noun: str = "face") -> list[str]:
    """What pictures (n, 3, h, w) show besides their subject, read off by the base: "smiling, at the beach, photo"."""
    return describe(base, references, ATTRIBUTES, f"a {noun}")


def vocabulary() -> set[str]:
    """Every word the miniature was taught, in lower case."""
    text = " ".join(word for values in ATTRIBUTES.values() for word in values)
    return {"a", "an", IDENTIFIER, *NOUNS, *text.split()}


def unknown_words(prompt: str) -> list[str]:
    """Words of a prompt that the miniature was never taught, in order."""
    words = prompt.lower().replace(",", " ").replace(".", " ").split()
    return [word for word in words if word not in vocabulary()]


def _choice(options: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(options, (count,), generator=generator)
