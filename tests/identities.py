"""Identities with random coefficients, and scales with random changes, of any family."""

from __future__ import annotations

import torch

from hyperdream_core.bases import get_base
from hyperdream_core.identity import Identity
from hyperdream_core.ops.bands import WHOLE, Band
from hyperdream_core.ops.lidb import LidbCoefficients, basis_sizes, fresh_coefficients
from hyperdream_core.ops.scales import ScaleChange
from hyperdream_core.tuned_scales import TunedScales


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


def make_scales(
    family: str, target_set: str = "attention", bands: tuple[Band, ...] = (WHOLE,), is_two_sided: bool = True
) -> TunedScales:
    """Random changes of the scales of a base that there is not, of about a hundredth."""
    generator = torch.Generator().manual_seed(3)

    def draw(size: int) -> torch.Tensor:
        return 0.01 * torch.randn(size, generator=generator)

    return TunedScales(
        family=family,
        target_set=target_set,
        quantization="int4",
        integers="0123456789abcdef" * 4,
        scales=tuple(
            {
                layer.name: ScaleChange(draw(layer.out_features), draw(layer.in_features) if is_two_sided else None)
                for layer in get_base(family).layers(target_set)
            }
            for _ in bands
        ),
        bands=bands,
        identifier="sks",
        class_noun="face",
        made_by={"how": "drawn für a test"},
    )
