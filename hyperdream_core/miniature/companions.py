"""What comes with the miniature besides its base, and with every other family: nothing."""

from __future__ import annotations

from ..bases.miniature import MINIATURE
from ..faces.recognizer import Recognizer
from ..pipelines.companions import Companions
from .world.captions import ATTRIBUTES, NOUNS, describe_references, unknown_words


def companions_of(family: str) -> Companions:
    """What comes with the base family of that name."""
    return _MINIATURE if family == MINIATURE.name else Companions()


def small_families(side: int) -> list[str]:
    """Families with a recogniser of their own whose pictures are as small as `side` px: who drew them is plain."""
    return [MINIATURE.name] if side <= MINIATURE.picture_size else []


def _recognizer() -> Recognizer | None:
    from .trial.judges import bundled_recognizer

    return bundled_recognizer()


_MINIATURE = Companions(
    describe=describe_references,
    recognizer=_recognizer,
    unknown_words=unknown_words,
    vocabulary=f"a [V] {' or '.join(NOUNS)}; "
    + "; ".join(", ".join(filter(None, values)) for values in ATTRIBUTES.values()),
    # Its predictor has only ever seen whole pictures.
    whole_pictures=True,
    draws_in_no_time=True,
)
