"""Procedural portraits: the same again for the same seed, different where people and contexts differ."""

from __future__ import annotations

from dataclasses import replace

import torch

from hyperdream_core.miniature.world.captions import Context, random_context
from hyperdream_core.miniature.world.people import HAIR_STYLES, TRAITS, random_people
from hyperdream_core.miniature.world.pets import random_pets, render_pets
from hyperdream_core.miniature.world.portrait import render_people
from hyperdream_core.miniature.world.view import random_view


def _portraits(count: int = 4, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    people = random_people(count, generator)
    return render_people(people, random_context(count, generator), random_view(count, generator), size=32)


def test_the_same_seed_paints_the_same_people() -> None:
    assert torch.equal(_portraits(), _portraits())


def test_pictures_stay_within_zero_and_one() -> None:
    pictures = _portraits(16)
    assert pictures.shape == (16, 3, 32, 32)
    assert float(pictures.min()) >= 0.0 and float(pictures.max()) <= 1.0


def test_a_picture_does_not_depend_on_its_company() -> None:
    generator = torch.Generator().manual_seed(1)
    people, context, view = random_people(3, generator), random_context(3, generator), random_view(3, generator)
    together = render_people(people, context, view, size=32)
    alone = type(view)(**{name: value[1:2] for name, value in vars(view).items()})
    torch.testing.assert_close(render_people(people[1:2], context[1:2], alone, size=32), together[1:2])


def test_every_trait_and_choice_changes_the_picture() -> None:
    generator = torch.Generator().manual_seed(2)
    # Long hair is the one style that shows volume, hairline and length; a mole is there above one half.
    people = replace(random_people(1, generator), traits=torch.full((1, len(TRAITS)), 0.6))
    people = replace(people, hair_style=torch.tensor([HAIR_STYLES.index("long")]))
    plain = Context(*(torch.zeros(1, dtype=torch.long) for _ in range(4)))
    view = random_view(1, generator, spread=0.0)
    before = render_people(people, plain, view)
    for choice in ("hair_style", "hair_colour", "eye_colour", "beard"):
        other = replace(people, **{choice: (getattr(people, choice) + 1) % 5})
        assert not torch.equal(render_people(other, plain, view), before), choice
    for index in range(people.traits.shape[1]):
        traits = people.traits.clone()
        traits[0, index] = 0.95
        assert not torch.equal(render_people(replace(people, traits=traits), plain, view), before), TRAITS[index]


def test_turn_light_and_occlusion_are_controllable() -> None:
    generator = torch.Generator().manual_seed(3)
    people, context = random_people(1, generator), random_context(1, generator)
    view = random_view(1, generator, spread=0.0)
    before = render_people(people, context, view, size=64)
    for name, value in (("turn", 1.0), ("tilt", 0.3), ("zoom", 0.2), ("occlusion", 0.5)):
        changed = replace(view, **{name: torch.tensor([value])})
        assert not torch.equal(render_people(people, context, changed, size=64), before), name
    lit = replace(view, light=torch.tensor([[1.0, 0.9]]))
    bright = render_people(people, context, lit, size=64)
    assert bright[..., 32:].mean() > bright[..., :32].mean()


def test_pets_are_another_kind_of_subject() -> None:
    generator = torch.Generator().manual_seed(4)
    pets = random_pets(5, generator)
    pictures = render_pets(pets, random_context(5, generator), random_view(5, generator), size=32)
    assert pictures.shape == (5, 3, 32, 32)
    assert len({picture.sum().item() for picture in pictures}) == 5
