"""What may come with a base family besides its checkpoints: who knows its words, its people and its pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..faces.recognizer import Recognizer
from .base import Base


@dataclass(frozen=True, kw_only=True)
class Companions:
    """What a family brings; every field is empty for most."""

    describe: Callable[[Base, Tensor], list[str]] | None = None
    """reads off references (n, 3, h, w) what they show besides their subject, in words the base was taught"""
    recognizer: Callable[[], Recognizer | None] | None = None
    """opens the family's own recogniser; None if this copy came without it"""
    unknown_words: Callable[[str], list[str]] | None = None
    """words of a prompt that the base was never taught; None where its vocabulary is not on record"""
    vocabulary: str = ""
    """all that it knows, as a sentence shows it"""
    whole_pictures: bool = False
    """its pictures are crops already, as its own renderer draws them"""
    draws_in_no_time: bool = False
    """a picture on the way costs next to nothing"""

    def own_recognizer(self) -> Recognizer | None:
        """The family's own recogniser, opened."""
        return self.recognizer() if self.recognizer is not None else None

    def read_captions(self, base: Base, references: Tensor) -> Sequence[str]:
        """Captions of references (n, 3, h, w) at the base's own size; none where nobody can read them off."""
        return self.describe(base, references) if self.describe is not None else ()
