"""Trainable LiDB coefficients of one or many subjects, on top of fixed ones, folded into LoRA factors once a step.

Folding turns what is trained into what the layers run on. Of a layer from i to o features, with a basis of p rows on
the input side, at rank r on top of a start of rank r0:

    trained (r, p)                         the coefficients, which the optimiser sees
    trained @ shared * signs (r, i)        the factor that they stand for: shared (p, i) is one matrix for all layers
                                           of i features, signs (i) are the layer's own; see `ops.lidb`
    [fixed; that] (r0 + r, i)              `down`: the start's factor, multiplied out once, above the fresh one

By numbers, p = 2, i = 3, r = 1, r0 = 1: coefficients (2, 1) on rows (1, 0, 0) and (0, 1, 0) are (2, 1, 0); with the
signs (1, -1, 1) they are (2, -1, 0); under the start's row (5, 5, 5), `down` is [[5, 5, 5], [2, -1, 0]]. `up` likewise.

Layers of one size are folded by one product, stacked as (layers, rows, r, p), a row for each subject: a step costs the
same few operations for 128 layers as for 560. Gradients reach the coefficients through these products; the layers
themselves run as plain low-rank adapters and know nothing of bases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...bases import UNET, BaseFamily
from ...errors import BaseMismatchError, ConfigError
from ...identity import Identity
from ...ops.bands import said
from ...ops.lidb import LidbCoefficients, basis_sizes, fresh_coefficients, stacked_basis
from ...ops.lowrank import LoraPair


@dataclass(eq=False)
class _Group:
    """One side of the layers of one size."""

    names: list[str]
    trained: Tensor
    """(layers, rows, r, columns), what the optimiser sees"""
    fixed: Tensor | None
    """(layers, rows, r0, size), factors of the identities to start from"""
    shared: Tensor
    """(columns, size)"""
    signs: Tensor
    """(layers, 1, 1, size)"""
    units: Tensor | None = None
    """(layers, rows, 1, 1), what the coefficients count in; None counts in ones"""

    def fold(self) -> Tensor:
        """Factors (layers, rows, r0 + r, size)."""
        trained = self.trained if self.units is None else self.trained * self.units
        factors = trained @ self.shared * self.signs
        return factors if self.fixed is None else torch.cat([self.fixed, factors], dim=-2)


class TrainableAdapters:
    """A fresh adapter of rank r for each row (subject), whose delta is zero at first, on top of the row's start.

    Args:
        family: of the base.
        like: its layers, bases and names are used, its coefficients are not.
        rank: of the fresh adapters.
        starts: one per row, for the same layers and bases; None starts from the base itself.
        generator: on the CPU; all rows start from the same draw.
        device: where to train.
    """

    def __init__(
        self,
        family: BaseFamily,
        like: Identity,
        rank: int,
        starts: Sequence[Identity | None],
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.like, self.rank, self.rows = like, rank, len(starts)
        fresh = {}
        for layer in like.layers:
            p, a = basis_sizes(layer.in_features, layer.out_features, like.down_dim, like.up_dim)
            fresh[layer.name] = fresh_coefficients(p, a, rank, generator)
        self._groups = {side: self._group(side, family.name, fresh, starts, device) for side in ("down", "up")}

    def parameters(self) -> list[Tensor]:
        """The tensors to train; rows never mix, so an elementwise optimiser trains them independently."""
        return [group.trained for side in self._groups.values() for group in side]

    def touch_text(self, family: BaseFamily) -> bool:
        """Whether any layer is a text encoder's."""
        return any(family.part_of(name) != UNET for name in self.like.coefficients)

    def fold(self) -> dict[str, LoraPair]:
        """The pair of every layer: down (rows, r, i), up (rows, o, r); for a single row without that axis."""
        sides = {}
        for side, groups in self._groups.items():
            factors: dict[str, Tensor] = {}
            for group in groups:
                folded = group.fold()
                factors.update(zip(group.names, (folded[:, 0] if self.rows == 1 else folded).unbind(0), strict=True))
            sides[side] = factors
        return {name: LoraPair(sides["down"][name], sides["up"][name].mT) for name in sides["down"]}

    @torch.no_grad()
    def directions(self) -> dict[str, Tensor]:
        """Layer name -> the fresh adapter's down factor (r, i), without the start's; the same for all rows at first."""
        found: dict[str, Tensor] = {}
        for group in self._groups["down"]:
            found.update(zip(group.names, group.trained[:, 0] @ group.shared * group.signs[:, 0], strict=True))
        return found

    def count_in(self, units: Mapping[str, Tensor]) -> None:
        """Let the trained coefficients of each layer count in its unit, layer name -> (rows,), see `layer_units`."""
        for group in self._groups["up"]:
            stacked = torch.stack([units[name] for name in group.names])
            group.units = stacked.to(group.trained)[..., None, None]

    def squared_norms(self) -> Tensor:
        """Squared Frobenius norm of the fresh deltas of all layers together, in their units, (rows,)."""
        grams = {}
        for side, groups in self._groups.items():
            for group in groups:
                products = group.trained @ group.trained.mT
                grams.update({(side, name): gram for name, gram in zip(group.names, products.unbind(0), strict=True)})
        norms = [(grams["down", name] * grams["up", name]).sum(dim=(-2, -1)) for name in self.like.coefficients]
        return torch.stack(norms).sum(0)

    @torch.no_grad()
    def coefficients(self, row: int, values: Sequence[Tensor] | None = None) -> dict[str, LidbCoefficients]:
        """The row's trained coefficients by layer, on the CPU; `values` replace the current `parameters()`."""
        tensors = iter(self.parameters() if values is None else values)
        sides: dict[str, dict[str, Tensor]] = {}
        for side, groups in self._groups.items():
            sides[side] = {}
            for group in groups:
                rows = next(tensors)[:, row].detach()
                rows = (rows if group.units is None else rows * group.units[:, row]).to("cpu", copy=True)
                sides[side].update(zip(group.names, rows.unbind(0), strict=True))
        return {
            layer.name: LidbCoefficients(sides["down"][layer.name], sides["up"][layer.name].mT.contiguous())
            for layer in self.like.layers
        }

    def _group(
        self,
        side: str,
        family: str,
        fresh: dict[str, LidbCoefficients],
        starts: Sequence[Identity | None],
        device: torch.device,
    ) -> list[_Group]:
        by_size: dict[int, list[str]] = {}
        for layer in self.like.layers:
            by_size.setdefault(layer.in_features if side == "down" else layer.out_features, []).append(layer.name)
        groups = []
        for size, names in by_size.items():
            drawn = torch.stack([_rows_of(fresh[name], side) for name in names])
            shared, signs = stacked_basis(family, names, side, size, drawn.shape[-1])
            shared, signs = shared.to(device), signs.to(device)[:, None, None]
            trained = drawn[:, None].repeat(1, self.rows, 1, 1).to(device).requires_grad_()
            fixed = _stack_starts(starts, names, side, drawn.shape[-1])
            if fixed is not None:
                fixed = fixed.to(device) @ shared * signs
            groups.append(_Group(names, trained, fixed, shared, signs))
        return groups


def without_effect(family: BaseFamily, starts: Sequence[Identity | None], kind: tuple[str, int, int]) -> Identity:
    """An identity that changes nothing, for the layers and bases that all rows have in common.

    Args:
        family: of the base.
        starts: one per row.
        kind: target set, down_dim and up_dim if no row has a start.

    Raises:
        BaseMismatchError: a start was made for another family.
        ConfigError: the starts differ in layers or basis sizes, or act in noise bands.
    """
    known = [start for start in starts if start is not None]
    for start in known:
        if start.family != family.name:
            raise BaseMismatchError(
                f"the identity was made for {start.family!r}, but the base is {family.name!r}; load a base of "
                f"{start.family!r}"
            )
        if not start.is_constant:
            raise ConfigError(
                f"the identity acts in the noise bands {said(start.bands)}, but polishing trains one change for all "
                "noise levels; start from nothing, or in Python from that of one band (`Identity.of_band`)"
            )
    kinds = {(start.target_set, start.down_dim, start.up_dim) for start in known} or {kind}
    if len(kinds) > 1:
        raise ConfigError(f"the starts have different layers or bases, {sorted(kinds)}; polish each kind by itself")
    target_set, down_dim, up_dim = kinds.pop()
    coefficients = {}
    for layer in family.layers(target_set):
        p, a = basis_sizes(layer.in_features, layer.out_features, down_dim, up_dim)
        coefficients[layer.name] = LidbCoefficients(torch.zeros(1, p), torch.zeros(a, 1))
    return Identity(
        family=family.name,
        target_set=target_set,
        rank=1,
        down_dim=down_dim,
        up_dim=up_dim,
        coefficients=coefficients,
    )


def _rows_of(coefficients: LidbCoefficients, side: str) -> Tensor:
    """(r, columns) of either side."""
    return coefficients.down if side == "down" else coefficients.up.mT


def _stack_starts(starts: Sequence[Identity | None], names: list[str], side: str, columns: int) -> Tensor | None:
    """(layers, rows, r0, columns), rows of smaller rank filled up with zeros; None if no row has a start."""
    rank = max((start.rank for start in starts if start is not None), default=0)
    if rank == 0:
        return None
    stack = torch.zeros(len(names), len(starts), rank, columns)
    for row, start in enumerate(starts):
        if start is not None:
            for index, name in enumerate(names):
                stack[index, row, : start.rank] = _rows_of(start.coefficients[name], side)
    return stack
