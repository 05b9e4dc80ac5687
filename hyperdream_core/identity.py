"""Adapters of any method, and the identity: one subject as LiDB coefficients, and how these add, mix and shrink."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch

from .bases import Layer, get_base
from .errors import BaseMismatchError, ConfigError
from .ops import lidb
from .ops.bands import WHOLE, Band, check_apart, said
from .ops.changes import LayerChange
from .ops.lidb import LidbCoefficients
from .ops.lowrank import LoraPair


@runtime_checkable
class Adapter(Protocol):
    """What makes a base know one subject, by whatever method: changes of its layers, band by band of the noise."""

    @property
    def family(self) -> str:
        """Of the bases that it is for."""
        ...

    @property
    def identifier(self) -> str:
        """The rare word that stands for the subject."""
        ...

    @property
    def class_noun(self) -> str:
        """What kind of thing the subject is."""
        ...

    @property
    def bands(self) -> tuple[Band, ...]:
        """The noise levels [start, end) at which it acts, apart and rising; elsewhere it does not."""
        ...

    def changes(self, band: Band) -> Mapping[str, LayerChange]:
        """Layer name -> its change in one of the `bands`."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Identity:
    """One subject as LiDB coefficients for one base family: the adapter that all of ours are.

    Nearly all identities are constant: one set of coefficients for all noise levels. Others have a set for each of
    their bands, and then `coefficients` has the entry `<layer>.band<k>` for band k where a constant one has `<layer>`.
    """

    family: str
    target_set: str
    rank: int
    down_dim: int = 50
    """Basis size on the input side, before clipping to the layer."""
    up_dim: int = 100
    """Basis size on the output side, before clipping to the layer."""
    coefficients: Mapping[str, LidbCoefficients]
    """Entry -> down (r, p), up (a, r); one entry for each layer of the target set, and band."""
    bands: tuple[Band, ...] = (WHOLE,)
    """Noise levels [start, end) at which it acts, apart and rising."""
    identifier: str = "sks"
    class_noun: str = "face"
    made_by: Mapping[str, str] = field(default_factory=dict)
    """How it was made, as free facts; they travel with the file."""

    def __post_init__(self) -> None:
        check_apart(self.bands)
        if max(self.down_dim, self.up_dim) > lidb.MOST_COLUMNS:
            raise ConfigError(
                f"down_dim and up_dim must be {lidb.MOST_COLUMNS} or less, got {self.down_dim} and {self.up_dim}; "
                "choose fewer"
            )
        expected = {
            entry_name(layer.name, self.bands, k): layer for k in range(len(self.bands)) for layer in self.layers
        }
        for name in [*expected, *self.coefficients]:
            if name not in self.coefficients or name not in expected:
                what = "is missing" if name in expected else "is none of them"
                each = "" if self.is_constant else f" in each of its {len(self.bands)} bands"
                raise BaseMismatchError(
                    f"an identity for {self.family!r}, {self.target_set!r} has one entry for each of its "
                    f"{len(self.layers)} layers{each}, but layer {name!r} {what}. Take the layers from the base family."
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

    @property
    def is_constant(self) -> bool:
        """Whether it makes the same change at all noise levels, so that weights can have it merged in."""
        return self.bands == (WHOLE,)

    def of_band(self, band: Band) -> Identity:
        """The constant identity that makes everywhere the change that this one makes in one of its bands.

        Raises:
            ConfigError: it has no such band.
        """
        if band not in self.bands:
            raise ConfigError(f"the identity has the noise bands {said(self.bands)}, not {said([band])}; ask for one")
        k = self.bands.index(band)
        entries = {layer.name: self.coefficients[entry_name(layer.name, self.bands, k)] for layer in self.layers}
        return replace(self, bands=(WHOLE,), coefficients=entries)

    def changes(self, band: Band) -> dict[str, LoraPair]:
        """The LoRA pair of every layer in one of the bands, down (r, i) and up (o, r) float32, on the CPU.

        Raises:
            ConfigError: it has no such band.
        """
        return self.of_band(band).expand()

    def expand(self, dtype: torch.dtype = torch.float32) -> dict[str, LoraPair]:
        """The LoRA pair of every layer, down (r, i) and up (o, r), on the CPU in `dtype`: the same weight change.

        Raises:
            ConfigError: the identity is not constant, so that it has no such pairs; see `changes`.
        """
        if not self.is_constant:
            raise ConfigError(
                f"the identity acts in the noise bands {said(self.bands)}, but one weight change serves all noise "
                "levels, so it can be neither merged nor exported as a LoRA nor polished. Draw with it live: "
                "`hyperdream draw`, Apply Identity in ComfyUI, or HyperDream guidance in Automatic1111 and Forge"
            )
        return lidb.expand_layers(self.coefficients, self.family, self.layers, self.down_dim, self.up_dim, dtype)

    def scaled(self, strength: float) -> Identity:
        """The identity whose weight change is `strength` times as large."""
        return replace(self, coefficients={n: lidb.scale(c, strength) for n, c in self.coefficients.items()})

    def concatenated(self, other: Identity) -> Identity:
        """The identity whose weight change is the sum of both; ranks add up, and all else is this one's.

        Raises:
            BaseMismatchError: the other is for another base, target set, basis size or noise bands.
        """
        self.check_alike(other)
        coefficients = {n: lidb.concatenate([c, other.coefficients[n]]) for n, c in self.coefficients.items()}
        return replace(self, rank=self.rank + other.rank, coefficients=coefficients)

    def check_alike(self, other: Identity) -> None:
        """Refuse an identity whose numbers mean something else than this one's.

        Raises:
            BaseMismatchError: it is for another base, target set, basis size or noise bands.
        """
        ours, theirs = ((i.family, i.target_set, i.down_dim, i.up_dim, said(i.bands)) for i in (self, other))
        if ours != theirs or self.bands != other.bands:
            remedy = "Export both as LoRA and combine those" if self.is_constant and other.is_constant else "Draw apart"
            if self.family != other.family:
                remedy = "Take two of the same base family"
            raise BaseMismatchError(
                f"identities for {ours} and {theirs} cannot be added: base family, target set, basis sizes and noise "
                f"bands must agree. {remedy}."
            )

    def canonicalized(self) -> Identity:
        """The one representative of all identities of this rank with the same weight change."""
        coefficients = {n: lidb.canonicalize(c) for n, c in self.coefficients.items()}
        rank = next(iter(coefficients.values())).rank
        return replace(self, rank=rank, coefficients=coefficients)

    def distances(self, other: Identity) -> tuple[float, ...]:
        """Frobenius distance of the two weight changes over all layers, in each band.

        Raises:
            BaseMismatchError: as `concatenated`.
        """
        self.check_alike(other)
        squares = dict.fromkeys(range(len(self.bands)), 0.0)
        for k in squares:
            for layer in self.layers:
                name = entry_name(layer.name, self.bands, k)
                squares[k] += lidb.core_distance(self.coefficients[name], other.coefficients[name]).item()
        return tuple(square**0.5 for square in squares.values())


def entry_name(layer: str, bands: Sequence[Band], k: int) -> str:
    """Name of a layer's coefficients in band k: the layer's own in a constant identity."""
    return layer if tuple(bands) == (WHOLE,) else f"{layer}.band{k}"


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
        BaseMismatchError: identities for different bases, layers, basis sizes or noise bands.
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
        BaseMismatchError: identities for different bases, layers, basis sizes or noise bands.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"share must lie in 0..1, got {share:g}; 0.5 is the middle")
    if share in (0.0, 1.0):
        # Exactly that person; the mean would carry the other along at weight 0. Other families are refused.
        first.check_alike(second)
        return second if share else first
    return replace(averaged([first, second], [1.0 - share, share]), made_by={"method": "blend", "share": f"{share:g}"})


def coefficient_shapes(layer: Layer, rank: int, down_dim: int, up_dim: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shapes (r, p) of down and (a, r) of up, for a layer."""
    p, a = lidb.basis_sizes(layer.in_features, layer.out_features, down_dim, up_dim)
    return (rank, p), (a, rank)
