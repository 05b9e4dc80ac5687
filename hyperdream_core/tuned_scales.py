"""Tuned scales: one subject as changes of a quantised base's scales, one set for each band of the noise.

An adapter as an identity is one, by another method. It goes with the integers that it was trained on: on a base that
was quantised otherwise, or from another checkpoint, the same factors would act on other weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .bases import Layer, get_base
from .errors import BaseMismatchError, ConfigError
from .ops.bands import WHOLE, Band, check_apart, said
from .ops.finite import is_finite
from .ops.scales import ScaleChange

SIDES = ("out", "both")
"""Output scales only (PEQA), or those of the inputs too (TuneQDM)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TunedScales:
    """One subject as scale changes for one quantised base.

    Outside of its bands the base's own scales act: one band that leaves gaps is strategy S1 of the method, several
    bands that cover 0 to 1 are S2.
    """

    family: str
    target_set: str
    quantization: str
    """kind of the base's codes, for messages; `integers` says exactly which"""
    integers: str
    """digest of the base's codes in these layers; see `models.quantized_network.integers_digest`"""
    scales: tuple[Mapping[str, ScaleChange], ...]
    """of each band: layer -> its change, of all layers of the target set and on the same sides"""
    bands: tuple[Band, ...] = (WHOLE,)
    """noise levels [start, end) at which it acts, apart and rising"""
    identifier: str = "sks"
    class_noun: str = "face"
    made_by: Mapping[str, str] = field(default_factory=dict)
    """how it was made, as free facts; they travel with the file"""

    def __post_init__(self) -> None:
        check_apart(self.bands)
        if len(self.scales) != len(self.bands):
            raise ConfigError(
                f"there are {len(self.scales)} sets of scales for {len(self.bands)} noise bands; give one for each"
            )
        layers = {layer.name: layer for layer in self.layers}
        for changes in self.scales:
            wrong = next((name for name in [*layers, *changes] if name not in layers or name not in changes), None)
            if wrong is not None:
                raise BaseMismatchError(
                    f"scales for {self.family!r}, {self.target_set!r} have one change for each of its {len(layers)} "
                    f"layers, but layer {wrong!r} {'is missing' if wrong in layers else 'is none of them'}. Take the "
                    "layers from the base family."
                )
            for name, change in changes.items():
                _check(layers[name], change, self.sides)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """That it changes, in the order of files."""
        return get_base(self.family).layers(self.target_set)

    @property
    def sides(self) -> str:
        """`out` or `both`."""
        return "out" if next(iter(self.scales[0].values())).scale_in is None else "both"

    def changes(self, band: Band) -> Mapping[str, ScaleChange]:
        """The change of every layer in one of the bands.

        Raises:
            ConfigError: it has no such band.
        """
        if band not in self.bands:
            raise ConfigError(f"the scales have the noise bands {said(self.bands)}, not {said([band])}; ask for one")
        return self.scales[self.bands.index(band)]

    def check_integers(self, integers: str) -> None:
        """Refuse a base whose integers are others, by their digest.

        Raises:
            BaseMismatchError: they are.
        """
        if integers != self.integers:
            raise BaseMismatchError(
                f"the scales were trained on a base in {self.quantization} with the integers {self.integers[:12]}, but "
                f"this one has {integers[:12]}: the same scales would mean other weights. Quantise the checkpoint that "
                "they were trained on, in the same way."
            )


def _check(layer: Layer, change: ScaleChange, sides: str) -> None:
    into = None if change.scale_in is None else tuple(change.scale_in.shape)
    wanted = (layer.out_features,), (layer.in_features,) if sides == "both" else None
    if (tuple(change.scale_out.shape), into) != wanted:
        raise BaseMismatchError(
            f"layer {layer.name!r} has scales of the shapes {tuple(change.scale_out.shape)} and {into}, but it needs "
            f"{wanted[0]} and {wanted[1]}. Train them on that base, on the same sides in all layers."
        )
    if not is_finite(change.scale_out, change.scale_in):
        raise ConfigError(f"layer {layer.name!r} has scales that are not finite; train them with a lower learning rate")
