"""From adapters with noise bands of their own to the pairs that act at a noise level."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from hyperdream_core.bases import get_base
from hyperdream_core.errors import BaseMismatchError, ConfigError
from hyperdream_core.identity import Adapter, Identity
from hyperdream_core.ops.lowrank import LoraPair
from hyperdream_core.pipelines.diffusers.diffusers_base import DiffusersBase
from hyperdream_core.pipelines.drawing.draw import DrawConfig, draw
from hyperdream_core.pipelines.drawing.subjects import AdapterBand, Pairs, ResolvedSubject, Subject, Subjects, resolve

FAMILY = get_base("miniature")
PROMPT = "a sks face, sad"


@pytest.fixture
def parts(fresh_identity: Callable[..., Identity]) -> list[Identity]:
    return [fresh_identity("miniature", scale=scale) for scale in (0.3, -0.2)]


@pytest.fixture
def banded(parts: list[Identity]) -> Identity:
    """The first part below t = 0.25, the second from 0.5 on, and nothing between."""
    entries = {f"{name}.band{k}": c for k, one in enumerate(parts) for name, c in one.coefficients.items()}
    return replace(parts[0], bands=((0.0, 0.25), (0.5, 1.0)), coefficients=entries)


def resolved(adapter: Subjects, **changes: Any) -> ResolvedSubject:
    return resolve(FAMILY, adapter, DrawConfig(**changes), 1)[0]


def is_same(pairs: Pairs, identity: Identity | None) -> bool:
    wanted = {} if identity is None else identity.expand()
    return pairs.keys() == wanted.keys() and all(torch.equal(pairs[n].up, wanted[n].up) for n in wanted)


@pytest.mark.parametrize(("t", "part"), [(0.0, 0), (0.2, 0), (0.25, None), (0.4, None), (0.5, 1), (0.9, 1), (1.0, 1)])
def test_an_identity_over_bands_acts_in_them_and_is_the_base_between(
    banded: Identity, parts: list[Identity], t: float, part: int | None
) -> None:
    assert is_same(resolved(banded).unet_pairs(t), None if part is None else parts[part])


def test_active_and_subject_bands_cut_the_identitys_own(banded: Identity, parts: list[Identity]) -> None:
    subject = resolved(banded, active=(0.1, 0.8))
    assert subject.edges == ((0.1, 0.25), (0.25, 0.5), (0.5, 0.8), (0.0, 0.1), (0.8, 1.0))
    assert is_same(subject.unet_pairs(0.05), None) and is_same(subject.unet_pairs(0.1), parts[0])
    turns = resolved(Subject(bands=[AdapterBand(0.0, 0.6, parts[1]), AdapterBand(0.6, 1.0, banded)]))
    assert turns.edges == ((0.0, 0.6), (0.6, 1.0))
    assert is_same(turns.unet_pairs(0.3), parts[1]) and is_same(turns.unet_pairs(0.7), parts[1])
    assert turns.identifier == "sks"


def test_a_picture_is_drawn_with_the_adapters_of_its_bands(
    base: DiffusersBase, banded: Identity, parts: list[Identity]
) -> None:
    config = DrawConfig(steps=4, size=32)
    turns = Subject(
        bands=[AdapterBand(0.0, 0.25, parts[0]), AdapterBand(0.25, 0.5, None), AdapterBand(0.5, 1.0, parts[1])]
    )
    drawn = draw(base, [PROMPT], banded, config)
    assert torch.equal(drawn, draw(base, [PROMPT], turns, config))
    assert not torch.allclose(drawn, draw(base, [PROMPT], parts[1], config), atol=1e-3)


@dataclass(frozen=True, eq=False)
class Foreign:
    """An adapter of another method, with changes of whatever kind."""

    given: Mapping[str, Any]
    family: str = "miniature"
    identifier: str = "zwx"
    class_noun: str = "face"
    bands: tuple[tuple[float, float], ...] = ((0.2, 1.0),)

    def changes(self, band: tuple[float, float]) -> Mapping[str, Any]:
        return self.given


def test_an_adapter_of_another_method_is_drawn_with_as_an_identity_is(parts: list[Identity]) -> None:
    pairs = parts[0].expand()
    adapter = Foreign(pairs)
    assert isinstance(adapter, Adapter)
    subject = resolved(adapter)
    assert subject.identifier == "zwx" and subject.unet_pairs(0.1) == {} and subject.unet_pairs(0.2) == pairs
    with pytest.raises(BaseMismatchError, match="made for 'sdxl', but the base is 'miniature'"):
        resolved(replace(adapter, family="sdxl"))


def test_a_kind_of_change_that_nobody_knows_is_refused_by_name(parts: list[Identity]) -> None:
    name = parts[0].layers[0].name
    with pytest.raises(ConfigError, match=f"layer '{name}' has a change of the type str, but .* are known"):
        resolved(Foreign({name: "scale"}))


def test_a_neutral_reference_over_bands_is_refused(banded: Identity, parts: list[Identity]) -> None:
    with pytest.raises(ConfigError, match=r"neutral reference acts in the noise bands \[0, 0.25\) and \[0.5, 1\)"):
        resolved(Subject(adapter=parts[0], neutral=banded))


def test_pairs_for_another_number_of_pictures_are_refused() -> None:
    name = FAMILY.layers()[0].name
    with pytest.raises(ConfigError, match="has adapters for 2 pictures, but there are 1 prompts"):
        resolved({name: LoraPair(torch.zeros(2, 1, 96), torch.zeros(2, 96, 1))})
