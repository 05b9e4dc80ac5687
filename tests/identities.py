"""Identities with random coefficients, of any family."""

from __future__ import annotations

import torch

from hyperdream_core.bases import get_base
from hyperdream_core.identity import Identity
from hyperdream_core.ops.lidb import LidbCoefficients, basis_sizes, fresh_coefficients


def make_identity(family: str, target_set: str = "attention", rank: int = 1, scale: float = 0.0) -> Identity:
    """A random identity; at scale 0 it changes nothing."""
    generator = torch.Generator().manual_seed(3)
    coefficients = {}
    for layer in get_base(family).layers(target_set):
        p, a = basis_sizes(layer.in_features, layer.out_features)
        fresh = fresh_coefficients(p, a, rank, generator)
        up = scale * torch.randn(a, rank, generator=generator)
        coefficients[layer.name] = LidbCoefficients(fresh.down, up)
    return Identity(family=family, target_set=target_set, rank=rank, coefficients=coefficients)
