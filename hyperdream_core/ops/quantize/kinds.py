"""Kinds of quantised weights: int8, int4 and NF4, what their codes stand for, and how many bytes a weight takes.

| kind | a code | stands for | inputs that share a scale |
| --- | --- | --- | --- |
| int8 | 0..255 | code - zero point | all of an output's |
| int4 | 0..15, two to a byte | code - zero point | 64 |
| nf4 | 0..15, two to a byte | one of 16 levels in -1..1 | 64 |

NF4's levels are quantiles of the normal distribution, close together where most of a trained layer's weights lie.

Source of NF4: QLoRA, arXiv:2305.14314, appendix E; the same numbers as in bitsandbytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import ConfigError

NF4_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""What NF4's codes 0 to 15 stand for."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of codes."""

    name: str
    bits: int
    """of a code"""
    group: int
    """inputs that share a scale unless asked otherwise; 0: all of an output's"""
    levels: tuple[float, ...]
    """what each code stands for, in units of the scale"""
    has_zero_point: bool
    """whether a whole number is taken off every code, so that scales fit weights that lie to one side of 0"""

    @property
    def most(self) -> int:
        """The largest code."""
        return len(self.levels) - 1


KINDS = {
    kind.name: kind
    for kind in (
        Kind(name="int8", bits=8, group=0, levels=tuple(map(float, range(256))), has_zero_point=True),
        Kind(name="int4", bits=4, group=64, levels=tuple(map(float, range(16))), has_zero_point=True),
        Kind(name="nf4", bits=4, group=64, levels=NF4_LEVELS, has_zero_point=False),
    )
}


def get_kind(name: str) -> Kind:
    """The kind of that name.

    Raises:
        ConfigError: no such kind; lists those there are.
    """
    if name not in KINDS:
        raise ConfigError(f"unknown kind of quantisation {name!r}; known: {', '.join(KINDS)}. None has under 4 bits")
    return KINDS[name]


def group_of(kind: Kind, inputs: int, group: int | None) -> int:
    """How many of a layer's inputs share a scale, 1 or more.

    Args:
        kind: of the codes.
        inputs: of the layer; a convolution's are its channels times its kernel.
        group: asked for; None takes the kind's own, 0 all inputs.

    Raises:
        ConfigError: an odd or negative number, whose groups would begin in the middle of a byte.
    """
    group = kind.group if group is None else group
    if group < 0 or group % 2:
        raise ConfigError(
            f"a group of {group} inputs would begin in the middle of a byte, expected an even number, or 0 for all of "
            "a layer's; 32, 64 and 128 are usual"
        )
    return min(group or inputs, inputs)


def groups_of(inputs: int, group: int) -> int:
    """How many groups an output's inputs fall into; the last one may be smaller."""
    return math.ceil(inputs / group)


def stored_bytes(kind: str, shape: Sequence[int], group: int | None = None) -> int:
    """Bytes of a quantised weight (o, ...): codes, scales and zero points.

    Each output's scale has four bytes. Where it has several groups, each of these has two for its share of that scale,
    and each group has one for its zero point, if the kind has one.
    """
    known, (outputs, *rest) = get_kind(kind), shape
    inputs = math.prod(rest)
    groups = groups_of(inputs, group_of(known, inputs, group))
    each = (2 if groups > 1 else 0) + (1 if known.has_zero_point else 0)
    return outputs * (math.ceil(inputs * known.bits / 8) + 4 + groups * each)


def bits_per_weight(kind: str, shape: Sequence[int], group: int | None = None) -> float:
    """Stored bits for each number of a weight (o, ...), scales and zero points included; float32 has 32."""
    return 8 * stored_bytes(kind, shape, group) / math.prod(shape)
