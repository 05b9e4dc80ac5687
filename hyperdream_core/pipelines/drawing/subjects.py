"""Whose adapters draw a picture, and when: one or several over noise bands, in the whole picture or in a mask."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...bases import UNET, BaseFamily
from ...errors import BaseMismatchError, ConfigError
from ...identity import Adapter
from ...models.adapted_linear import kind_of
from ...ops.bands import Band, check_cover, first_components, owner, rank_at, said
from ...ops.changes import LayerChange
from ...ops.lowrank import LoraPair, canonicalize
from .guidance_config import GuidanceConfig

Pairs = Mapping[str, LayerChange]
"""Layer -> its change: low-rank pairs, and with tuned scales those."""

OneAdapter = Adapter | Pairs | None
"""An adapter such as an identity; pairs shared by all pictures or one per picture (leading axis), such as of any LoRA
file; or nothing."""


@dataclass(frozen=True, eq=False)
class AdapterBand:
    """An adapter that acts at noise levels [start, end), as far as its own bands reach; None there is the base."""

    start: float
    end: float
    adapter: OneAdapter


@dataclass(frozen=True, eq=False, kw_only=True)
class Subject:
    """One subject of a picture."""

    adapter: OneAdapter = None
    """at all noise levels of the configuration's `active`; or `bands`"""
    bands: Sequence[AdapterBand] = ()
    """several adapters, each in its own band; they cover 0 to 1 exactly once"""
    identifier: str = ""
    """word that the base is not asked for; empty takes an identity's own, else `sks`"""
    neutral: OneAdapter = None
    """the adapter of a neutral reference, for guidance 'reference-null'"""
    mask: Tensor | None = None
    """(h, w) in 0..1, of the pictures' proportions: where the subject is; None is everywhere"""


Subjects = OneAdapter | Subject | Sequence[Subject]
"""What to draw with: one adapter, a subject, or several in their masks."""


@dataclass(frozen=True, eq=False)
class ResolvedSubject:
    """A subject's adapters as checked pairs."""

    family: BaseFamily
    edges: tuple[tuple[float, float], ...]
    pairs: tuple[Pairs, ...]
    """of each band"""
    neutral: Pairs
    identifier: str
    mask: Tensor | None
    rank_share: float

    def band(self, t: float) -> int:
        """Which of the adapters acts at `t`."""
        return owner(self.edges, t)

    def unet_pairs(self, t: float) -> Pairs:
        """Of the layers that act at each step, as far as their rank is not masked at `t`."""
        pairs = {n: pair for n, pair in self.pairs[self.band(t)].items() if self.family.part_of(n) == UNET}
        if self.rank_share == 1:
            return pairs
        low = _low_rank(pairs)
        counts = {name: rank_at(t, pair.rank, math.ceil(self.rank_share * pair.rank)) for name, pair in low.items()}
        return {name: first_components(pair, counts[name]) for name, pair in low.items() if counts[name]}

    def text_pairs(self, t: float) -> Pairs:
        """Of the text encoders; these act once, at full rank."""
        return {n: pair for n, pair in self.pairs[self.band(t)].items() if self.family.part_of(n) != UNET}

    def neutral_parts(self) -> tuple[Pairs, Pairs]:
        """The neutral adapter's of the UNet and of the text encoders."""
        unet = {name: pair for name, pair in self.neutral.items() if self.family.part_of(name) == UNET}
        return unet, {name: pair for name, pair in self.neutral.items() if name not in unet}

    def rows(self, rows: slice) -> ResolvedSubject:
        """The same of some of the pictures."""
        return replace(self, pairs=tuple(_rows(one, rows) for one in self.pairs), neutral=_rows(self.neutral, rows))


def resolve(family: BaseFamily, adapter: Subjects, config: GuidanceConfig, pictures: int) -> list[ResolvedSubject]:
    """The subjects to draw with, checked; at strength 0 their adapters are empty.

    Raises:
        BaseMismatchError: an adapter made for another base family.
        ConfigError: adapters for another number of pictures, bands with gaps or overlaps, several subjects without
            masks, or no neutral adapter where guidance needs one.
    """
    if adapter is None:
        return []
    if isinstance(adapter, Subject):
        subjects = [adapter]
    elif isinstance(adapter, (Adapter, Mapping)):
        subjects = [Subject(adapter=adapter)]
    else:
        subjects = list(adapter)
    if len(subjects) > 1 and any(subject.mask is None for subject in subjects):
        raise ConfigError(
            f"{len(subjects)} subjects need a mask each, so that each has its place; give every one a mask"
        )
    return [_resolved(family, subject, config, pictures) for subject in subjects]


def fitted_masks(masks: Sequence[Tensor], size: tuple[int, int], latents: tuple[int, int]) -> Tensor:
    """Masks (s, h, w) at the latents' size, of masks at the pictures' size (height, width), averaged.

    Raises:
        ConfigError: a mask of another size, with values outside 0..1, or masks that overlap.
    """
    for number, mask in enumerate(masks, start=1):
        if tuple(mask.shape) != size:
            raise ConfigError(
                f"mask {number} of {len(masks)} has the shape {tuple(mask.shape)}, expected {size}, the pictures' "
                "height and width in px; resize it"
            )
        if not bool(((mask >= 0) & (mask <= 1)).all()):
            raise ConfigError(f"mask {number} of {len(masks)} has values outside 0..1; scale it")
    small = torch.nn.functional.adaptive_avg_pool2d(torch.stack([mask.float() for mask in masks]), latents)
    if float(small.sum(0).max()) > 1 + 1e-4:
        raise ConfigError(
            f"the {len(masks)} masks overlap: together they reach {float(small.sum(0).max()):.2f}, expected 1 at most; "
            "draw them apart"
        )
    return small


def _resolved(family: BaseFamily, subject: Subject, config: GuidanceConfig, pictures: int) -> ResolvedSubject:
    bands = list(subject.bands)
    if bands and (subject.adapter is not None or tuple(config.active) != (0, 1)):
        raise ConfigError("adapters over bands leave no room for another adapter or for 'active'; give one of them")
    if not bands:
        start, end = config.active
        bands = [AdapterBand(start, end, subject.adapter)]
        bands += [AdapterBand(*gap, None) for gap in ((0.0, start), (end, 1.0)) if gap[0] < gap[1]]
    check_cover([(band.start, band.end) for band in bands])
    pieces = [piece for band in bands for piece in _pieces(family, band, pictures)]
    pairs = [piece for _, piece in pieces]
    if config.strength == 0:
        pairs = [{} for _ in pairs]
    if config.rank_share < 1:
        pairs = [{name: canonicalize(pair) for name, pair in _low_rank(one).items()} for one in pairs]
    if config.guidance == "reference-null" and subject.neutral is None and any(pairs):
        raise ConfigError(
            "guidance 'reference-null' leads away from a neutral reference's adapter, and there is none; predict one "
            "from a plain grey picture and give it, or use guidance 'plain'"
        )
    named = [band.adapter.identifier for band in bands if isinstance(band.adapter, Adapter)]
    return ResolvedSubject(
        family,
        tuple(edge for edge, _ in pieces),
        tuple(pairs),
        _neutral_pairs(family, subject.neutral, pictures),
        subject.identifier or (named[0] if named else "sks"),
        subject.mask,
        config.rank_share,
    )


def _pieces(family: BaseFamily, band: AdapterBand, pictures: int) -> list[tuple[Band, Pairs]]:
    """The band cut where its adapter's own bands begin and end; where it has none, the piece is the base's."""
    adapter = band.adapter
    if not isinstance(adapter, Adapter):
        return [((band.start, band.end), _checked_pairs(adapter or {}, pictures))]
    _check_family(family, adapter)
    pieces: list[tuple[Band, Pairs]] = []
    reached = band.start
    for start, end in adapter.bands:
        inner = max(start, band.start), min(end, band.end)
        if inner[0] < inner[1]:
            if reached < inner[0]:
                pieces.append(((reached, inner[0]), {}))
            pieces.append((inner, _checked_pairs(adapter.changes((start, end)), pictures)))
            reached = inner[1]
    if reached < band.end:
        pieces.append(((reached, band.end), {}))
    return pieces


def _neutral_pairs(family: BaseFamily, neutral: OneAdapter, pictures: int) -> Pairs:
    if not isinstance(neutral, Adapter):
        return _checked_pairs(neutral or {}, pictures)
    _check_family(family, neutral)
    if len(neutral.bands) > 1:
        raise ConfigError(
            f"the neutral reference acts in the noise bands {said(neutral.bands)}, but one change for all noise levels "
            "is expected; predict it from a plain grey picture"
        )
    return _checked_pairs(neutral.changes(neutral.bands[0]), pictures)


def _check_family(family: BaseFamily, adapter: Adapter) -> None:
    if adapter.family != family.name:
        raise BaseMismatchError(
            f"the identity was made for {adapter.family!r}, but the base is {family.name!r}; load a base of "
            f"{adapter.family!r}"
        )


def _low_rank(changes: Pairs) -> dict[str, LoraPair]:
    """The changes as pairs, whose rank can be masked."""
    pairs = {name: change for name, change in changes.items() if isinstance(change, LoraPair)}
    for name, change in changes.items():
        if name not in pairs:
            raise ConfigError(
                f"layer {name!r} of the adapter has a {type(change).__name__}, which has no rank to mask over the "
                "noise; leave rank_share at 1"
            )
    return pairs


def _checked_pairs(pairs: Pairs, pictures: int) -> Pairs:
    for name, pair in pairs.items():
        kind_of(name, pair)
        if pair.samples not in (None, pictures):
            raise ConfigError(
                f"layer {name!r} has adapters for {pair.samples} pictures, but there are {pictures} prompts; "
                "give one for each, or one for all"
            )
    return pairs


def _rows(pairs: Pairs, rows: slice) -> Pairs:
    return {name: pair.rows(rows) for name, pair in pairs.items()}
