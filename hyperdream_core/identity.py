"""Identities: what makes a base know one subject, as LiDB coefficients, and how they add, mix and shrink."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from .bases import Layer, get_base
from .errors import BaseMismatchError, ConfigError
from .ops import lidb
from .ops.lidb import LidbCoefficients
from .ops.lowrank import LoraPair


@dataclass(frozen=True, kw_only=True, eq=False)
class Identity:
    """One subject as LiDB coefficients for one base family."""

    family: str
    target_set: str
    rank: int
    down_dim: int = 50
    """Basis size on the input side, before clipping to the layer."""
    up_dim: int = 100
    """Basis size on the output side, before clipping to the layer."""
    coefficients: Mapping[str, LidbCoefficients]
    """Layer name -> down (r, p), up (a, r); one entry for each layer of the target set."""
    identifier: str = "sks"
    class_noun: str = "face"
    made_by: Mapping[str, str] = field(default_factory=dict)
    """How it was made, as free facts; they travel with the file."""

    def __post_init__(self) -> None:
        expected = {layer.name: layer for layer in self.layers}
        for name in [*expected, *self.coefficients]:
            if name not in self.coefficients or name not in expected:
                what = "is missing" if name in expected else "is none of them"
                raise BaseMismatchError(
                    f"an identity for {self.family!r}, {self.target_set!r} has one entry for each of its "
                    f"{len(expected)} layers, but layer {name!r} {what}. Take the layers from the base family."
                )
        for name, coefficients in self.coefficients.items():
            needed = coefficient_shapes(expected[name], self.rank, self.down_dim, self.up_dim)
            shapes = tuple(coefficients.down.shape), tuple(coefficients.up.shape)
            if shapes != needed:
                raise BaseMismatchError(
                    f"layer {name!r} has down {shapes[0]} and up {shapes[1]}, but {self.family!r} at rank {self.rank} "
                    f"needs {needed[0]} and {needed[1]}. Make it for that base, rank and basis size."
                )

    @property
    def layers(self) -> tuple[Layer, ...]:
        return get_base(self.family).layers(self.target_set)

    def expand(self, dtype: torch.dtype = torch.float32) -> dict[str, LoraPair]:
        """The LoRA pair of every layer, down (r, i) and up (o, r), on the CPU in `dtype`: the same weight change."""
        return lidb.expand_layers(self.coefficients, self.family, self.layers, self.down_dim, self.up_dim, dtype)

    def scaled(self, strength: float) -> Identity:
        """The identity whose weight change is `strength` times as large."""
        return replace(self, coefficients={n: lidb.scale(c, strength) for n, c in self.coefficients.items()})

    def concatenated(self, other: Identity) -> Identity:
        """The identity whose weight change is the sum of both; ranks add up, and all else is this one's.

        Raises:
            BaseMismatchError: the other is for another base, target set or basis size.
        """
        ours, theirs = ((i.family, i.target_set, i.down_dim, i.up_dim) for i in (self, other))
        if ours != theirs:
            raise BaseMismatchError(
                f"identities for {ours} and {theirs} cannot be added: base family, target set and basis sizes must "
                "agree. Export both as LoRA and combine those."
            )
        coefficients = {n: lidb.concatenate([c, other.coefficients[n]]) for n, c in self.coefficients.items()}
        return replace(self, rank=self.rank + other.rank, coefficients=coefficients)

    def canonicalized(self) -> Identity:
        """The one representative of all identities of this rank with the same weight change."""
        coefficients = {n: lidb.canonicalize(c) for n, c in self.coefficients.items()}
        rank = next(iter(coefficients.values())).rank
        return replace(self, rank=rank, coefficients=coefficients)


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


def coefficient_shapes(layer: Layer, rank: int, down_dim: int, up_dim: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shapes (r, p) of down and (a, r) of up, for a layer."""
    p, a = lidb.basis_sizes(layer.in_features, layer.out_features, down_dim, up_dim)
    return (rank, p), (a, rank)
