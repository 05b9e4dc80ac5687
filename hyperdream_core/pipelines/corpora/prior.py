"""Who might live in a base: distributions of identities, from which people are drawn that nobody has photographed.

A person is an identity here, and so any distribution of identities is one of people. The plain one is Gaussian in
LiDB's space; the learned one is Gaussian too, with mean and covariance of identities that there are already.

Source: the first is our choice, measured on the miniature; for the second see "Interpreting the weight space of
customized diffusion models", arXiv:2406.09413, where people are Gaussian in the principal components of their weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch

from ...bases import get_base
from ...errors import ConfigError
from ...formats.container import payload_digest
from ...identity import Identity, coefficient_shapes
from ...ops.lidb import LidbCoefficients
from .manifest import digest_of

_SUB_SEED = 1_000_003
"""A prime; two corpora of other seeds share nobody before a million people."""


class Prior(Protocol):
    """A distribution of identities."""

    @property
    def about(self) -> str:
        """What it is, in words."""
        ...

    def digest(self) -> str:
        """Of everything that decides who is drawn, but the seed."""
        ...

    def drawn(self, generator: torch.Generator) -> Identity:
        """Somebody."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class GaussianPrior:
    """Every layer's change is a random direction of LiDB's space, as long as a share of the layer's own weights."""

    family: str
    norms: Mapping[str, float]
    """layer -> Frobenius norm of its weights"""
    spread: float = 1.0
    """that share"""
    rank: int = 1
    target_set: str = "attention"
    down_dim: int = 50
    up_dim: int = 100

    @property
    def about(self) -> str:
        return f"Gaussian, {self.spread:g} of each layer's weights, rank {self.rank}"

    def digest(self) -> str:
        return digest_of([self.family, dict(self.norms), self.spread, self.rank, self.target_set, self.down_dim,
                          self.up_dim])  # fmt: skip

    def drawn(self, generator: torch.Generator) -> Identity:
        """Somebody: of each layer down (r, p) and up (a, r), of which the product has norm `spread` * the layer's."""
        coefficients = {}
        for layer in get_base(self.family).layers(self.target_set):
            down_shape, up_shape = coefficient_shapes(layer, self.rank, self.down_dim, self.up_dim)
            down, up = torch.randn(down_shape, generator=generator), torch.randn(up_shape, generator=generator)
            # At rank 1 the norms multiply; above it, and for random directions, about so.
            scale = self.spread * self.norms[layer.name] / (down.norm() * up.norm() / self.rank**0.5)
            coefficients[layer.name] = LidbCoefficients(down, scale * up)
        return Identity(
            family=self.family, target_set=self.target_set, rank=self.rank, down_dim=self.down_dim,
            up_dim=self.up_dim, coefficients=coefficients,
        )  # fmt: skip


class LearnedPrior:
    """Gaussian with the mean and covariance of identities that there are, over all layers together.

    A draw is the mean plus their deviations, each by a standard normal number, over the root of how many there are
    less one: exactly that Gaussian, and no covariance of millions of entries is ever written down.
    """

    def __init__(self, identities: Sequence[Identity], spread: float = 1.0, rank: int = 0) -> None:
        """Args:
        identities: two or more, constant and alike.
        spread: of the standard deviations, 1 is theirs.
        rank: of who is drawn; 0 takes the identities' own. A sum of many has a high one, of which the largest
            singular values of each layer are kept.

        Raises:
            ConfigError: fewer than two.
            BaseMismatchError: they are not for the same layers of one base family.
        """
        if len(identities) < 2:
            raise ConfigError(f"a distribution of people needs 2 or more identities, got {len(identities)}; add some")
        first = identities[0]
        for other in identities[1:]:
            first.check_alike(other)
        if not first.is_constant:
            raise ConfigError("identities with noise bands have no distribution here; give constant ones")
        self.first, self.count, self.spread, self.rank = first, len(identities), spread, rank or first.rank
        self._stacks = {
            name: LidbCoefficients(
                torch.cat([one.coefficients[name].down.float() for one in identities]),
                torch.cat([one.coefficients[name].up.float() for one in identities], dim=1),
            )
            for name in first.coefficients
        }
        self._ranks = [one.rank for one in identities]

    @property
    def about(self) -> str:
        return f"Gaussian of {self.count} identities, spread {self.spread:g}, rank {self.rank}"

    def digest(self) -> str:
        return hashlib.sha256(f"{self._contents} {self.spread} {self.rank} {self._ranks}".encode()).hexdigest()

    @cached_property
    def _contents(self) -> str:
        return payload_digest({f"{name}.down": one.down for name, one in self._stacks.items()}) + payload_digest(
            {f"{name}.up": one.up for name, one in self._stacks.items()}
        )

    def drawn(self, generator: torch.Generator) -> Identity:
        """Somebody, of the prior's rank."""
        shares = torch.randn(self.count, generator=generator)
        shares = 1 / self.count + self.spread * (shares - shares.mean()) / (self.count - 1) ** 0.5
        each = torch.repeat_interleave(shares, torch.tensor(self._ranks))
        coefficients = {}
        for name, stack in self._stacks.items():
            left, values, right = torch.linalg.svd((stack.up * each) @ stack.down, full_matrices=False)
            most = min(self.rank, len(values))
            up, down = torch.zeros(len(left), self.rank), torch.zeros(self.rank, right.shape[1])
            up[:, :most], down[:most] = left[:, :most] * values[:most], right[:most]
            coefficients[name] = LidbCoefficients(down, up)
        return replace(self.first, rank=self.rank, coefficients=coefficients, made_by={"method": "invented"})


def somebody(prior: Prior, seed: int, number: int) -> Identity:
    """The person of that number, whoever else was drawn before."""
    return prior.drawn(torch.Generator().manual_seed(seed * _SUB_SEED + number))
