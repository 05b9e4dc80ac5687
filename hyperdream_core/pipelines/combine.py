"""Identities averaged and shortened, exactly where that is possible: LiDB's bases are orthonormal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..errors import ConfigError
from ..formats.adapter_file import Identity
from ..ops.lidb import LidbCoefficients


def truncated(identity: Identity, rank: int) -> Identity:
    """The identity of at most that rank whose deltas are closest to this one's.

    Exact per layer, by the singular values of the small core, because the bases are orthonormal.
    """
    if identity.rank <= rank:
        return identity
    coefficients = {
        name: LidbCoefficients(c.down[:rank].clone(), c.up[:, :rank].clone())
        for name, c in identity.canonicalized().coefficients.items()
    }
    return replace(identity, rank=rank, coefficients=coefficients)


def averaged(identities: Sequence[Identity], weights: Sequence[float] | None = None) -> Identity:
    """The identity whose deltas are the weighted mean of the others', exactly; their ranks add up.

    The coefficients themselves have a gauge freedom, so that their own mean would mean nothing.

    Raises:
        ConfigError: no identity, another number of weights, or weights that do not sum to more than 0.
        BaseMismatchError: identities for different bases, layers or basis sizes.
    """
    weights = [1.0] * len(identities) if weights is None else weights
    if not identities or len(weights) != len(identities) or not sum(weights) > 0:
        raise ConfigError(
            f"{len(identities)} identities and {len(weights)} weights summing to {sum(weights):g} have no mean; give "
            "one weight for each, above 0 in sum"
        )
    if len(identities) == 1:
        return identities[0]
    mean, *others = (
        identity.scaled(weight / sum(weights)) for identity, weight in zip(identities, weights, strict=True)
    )
    for other in others:
        mean = mean.concatenated(other)
    return mean


def blended(first: Identity, second: Identity, share: float) -> Identity:
    """Somebody between two people: `share` of the second, 0..1; the identifier is the first one's.

    Raises:
        ConfigError: a share outside 0..1.
        BaseMismatchError: identities for different bases, layers or basis sizes.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"share must lie in 0..1, got {share:g}; 0.5 is the middle")
    if share in (0.0, 1.0):
        # Exactly that person; the mean would carry the other along at weight 0. Other families are refused.
        first.concatenated(second)
        return second if share else first
    return replace(averaged([first, second], [1.0 - share, share]), made_by={"method": "blend", "share": f"{share:g}"})
