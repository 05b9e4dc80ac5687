"""Procedural people: a person is two dozen continuous traits and four choices."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

TRAITS = (
    "skin_tone", "skin_warmth", "face_width", "face_length", "jaw_width", "chin", "eye_spacing", "eye_size", "eye_tilt",
    "eye_height", "brow_thickness", "brow_angle", "brow_height", "nose_width", "nose_length", "mouth_width",
    "lip_fullness", "ear_size", "hair_volume", "hairline", "hair_length", "hair_shade", "freckles", "mole_x", "mole_y",
)  # fmt: skip
HAIR_STYLES = ("shaved", "short", "side part", "fringe", "long", "curly", "bun")
HAIR_COLOURS = [
    (0.10, 0.08, 0.08), (0.27, 0.16, 0.09), (0.46, 0.27, 0.13), (0.66, 0.26, 0.10),
    (0.88, 0.70, 0.36), (0.62, 0.61, 0.62), (0.93, 0.91, 0.87),
]  # fmt: skip
EYE_COLOURS = [(0.24, 0.14, 0.08), (0.45, 0.30, 0.12), (0.20, 0.42, 0.20), (0.20, 0.45, 0.72), (0.42, 0.48, 0.52)]
BEARDS = ("none", "moustache", "goatee", "full beard", "stubble")

SEEDS = {"base": 1, "judges": 2, "validation": 3, "test": 999}
"""Seeds of the disjoint populations: trained on, judged by, tuned on, reported on."""


@dataclass(frozen=True)
class People:
    """Identity parameters of a batch of people."""

    traits: Tensor  # (b, len(TRAITS)), 0..1
    hair_style: Tensor  # (b,), index
    hair_colour: Tensor
    eye_colour: Tensor
    beard: Tensor

    def __len__(self) -> int:
        return int(self.traits.shape[0])

    def __getitem__(self, index: Tensor | slice) -> People:
        return People(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def trait(self, name: str, low: float = 0.0, high: float = 1.0) -> Tensor:
        """One trait scaled to low..high, as (b, 1, 1)."""
        return (low + (high - low) * self.traits[:, TRAITS.index(name)]).reshape(-1, 1, 1)

    def targets(self) -> Tensor:
        """All parameters as numbers (b, d) around 0, choices one-hot: what an encoder can be taught to see."""
        tables = ((self.hair_style, len(HAIR_STYLES)), (self.hair_colour, len(HAIR_COLOURS)),
                  (self.eye_colour, len(EYE_COLOURS)), (self.beard, len(BEARDS)))  # fmt: skip
        one_hot = [torch.nn.functional.one_hot(index, count).float() for index, count in tables]
        return torch.cat([(self.traits - 0.5) * 3.4, *one_hot], dim=-1)


def random_people(count: int, generator: torch.Generator) -> People:
    """People drawn independently: traits uniform, choices uniform except that half have no beard."""

    def choose(options: int) -> Tensor:
        return torch.randint(options, (count,), generator=generator)

    traits = torch.rand(count, len(TRAITS), generator=generator)
    beard = choose(8)
    beard = torch.where(beard < len(BEARDS), beard, torch.zeros_like(beard))
    return People(traits, choose(len(HAIR_STYLES)), choose(len(HAIR_COLOURS)), choose(len(EYE_COLOURS)), beard)
