"""One prompt in the wordings of the base and of each subject, in one CONDITIONING.

The wordings travel inside the conditioning, so that a ControlNet, an area or a range of steps that other nodes put on
it holds for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...hyperdream_core.errors import ConfigError

_KEY = "hyperdream_wordings"


@dataclass(frozen=True, eq=False)
class Wording:
    """A prompt as one text encoder reads it."""

    tokens: Tensor
    """(1, n, d)"""
    pooled: Tensor | None
    """(1, d)"""


@dataclass(frozen=True, eq=False)
class _Wordings:
    base: Wording
    subjects: tuple[Wording, ...]


def with_wordings(base: Any, subjects: Sequence[Any], *, shows: Any) -> list[Any]:
    """The CONDITIONING `shows`, which carries the base's and the subjects' wordings of the same prompt.

    Args:
        base: CONDITIONING of the base.
        subjects: CONDITIONING of each subject.
        shows: the one of these that a MODEL without guidance is given.
    """
    entries = []
    for index, (tokens, facts) in enumerate(shows):
        each = [Wording(one[index][0], one[index][1].get("pooled_output")) for one in (base, *subjects)]
        entries.append([tokens, {**facts, _KEY: _Wordings(each[0], tuple(each[1:]))}])
    return entries


def worded(entry: dict[str, Any], subject: int | None, count: int) -> dict[str, Any]:
    """A copy of what ComfyUI has made of a conditioning's entry, in another wording; without wordings the same.

    Args:
        entry: with its tokens under `cross_attn`.
        subject: whose wording; None is the base's.
        count: number of subjects of the MODEL.

    Raises:
        ConfigError: the prompt is for another number of people.
    """
    wordings = entry.get(_KEY)
    if wordings is None:
        return dict(entry)
    if len(wordings.subjects) != count:
        raise ConfigError(
            f"the prompt is worded for {len(wordings.subjects)} people, but the MODEL has {count}; connect MODEL, "
            "positive and negative of one and the same guidance node"
        )
    wording = wordings.base if subject is None else wordings.subjects[subject]
    pooled = {} if wording.pooled is None else {"pooled_output": wording.pooled}
    return {**entry, "cross_attn": wording.tokens, **pooled}
