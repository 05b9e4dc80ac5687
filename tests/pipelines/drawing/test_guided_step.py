"""The guided step, by itself and in `draw`: one call of the UNet, against each branch drawn on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperdream_core.bases import get_base
from hyperdream_core.errors import ConfigError
from hyperdream_core.identity import Identity
from hyperdream_core.ops.guidance import BranchWeights
from hyperdream_core.ops.lowrank import LoraPair
from hyperdream_core.pipelines.base import Conditioning
from hyperdream_core.pipelines.diffusers.diffusers_base import DiffusersBase
from hyperdream_core.pipelines.drawing.draw import DrawConfig, draw
from hyperdream_core.pipelines.drawing.guided_step import NULL, PROMPT, Guidance, Key, Part, answers
from hyperdream_core.pipelines.drawing.subjects import AdapterBand, Subject, Subjects, resolve

ASKED, NOUN = "a sks face, sad", "a face, sad"
TINY: dict[str, Any] = {"steps": 2, "size": 32}


def config(**changes: Any) -> DrawConfig:
    return DrawConfig(**{**TINY, **changes})


@pytest.fixture
def identity(fresh_identity: Callable[..., Identity]) -> Identity:
    return fresh_identity("miniature", scale=0.3)


@contextmanager
def counted(base: DiffusersBase) -> Iterator[tuple[DiffusersBase, list[int], list[str]]]:
    """The base, the batch size of each of its UNet's calls, and all prompts that it encodes."""
    calls: list[int] = []
    prompts: list[str] = []

    class Counted(DiffusersBase):
        def predict(self, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
            calls.append(len(latents))
            return super().predict(latents, t, conditioning)

        def encode_prompt(self, texts: Any) -> Conditioning:
            prompts.extend(texts)
            return super().encode_prompt(texts)

    yield Counted(**{name: getattr(base, name) for name in base.__dataclass_fields__}), calls, prompts


def one_step(base: DiffusersBase, prompt: str, adapter: Subjects, **changes: Any) -> Tensor:
    """The base's own prediction in the first step: guidance 1, and a sampler of one step to the clean latents."""
    return draw(base, [prompt], adapter, config(steps=1, sampler="ddim", guidance_scale=1.0, **changes))


@pytest.mark.parametrize("change", [{"base_scale": 1.0, "subject_scale": 1.0}, {"null_strength": 1.0}])
def test_neutral_dials_are_plain_guidance_bit_for_bit(
    base: DiffusersBase, identity: Identity, change: dict[str, float]
) -> None:
    scale = change.get("base_scale", 2.5)
    hybrid = config(guidance="hybrid", guidance_scale=2.5, **change)
    plain = config(guidance="plain", guidance_scale=scale)
    assert torch.equal(draw(base, [ASKED] * 2, identity, hybrid), draw(base, [ASKED] * 2, identity, plain))


def test_a_blend_of_all_the_subject_is_plain_guidance_bit_for_bit(base: DiffusersBase, identity: Identity) -> None:
    blend = config(guidance="blend", base_scale=5.0, subject_scale=1.0, guidance_scale=2.5)
    plain = config(guidance="plain", guidance_scale=2.5)
    assert torch.equal(draw(base, [ASKED], identity, blend), draw(base, [ASKED], identity, plain))


@pytest.mark.parametrize(
    "change",
    [
        {"guidance": "hybrid", "subject_scale": 0.0},
        {"guidance": "mix", "subject_scale": 0.0},
        {"guidance": "blend", "subject_scale": 0.0},
        {"guidance": "hybrid", "subject_scale": 0.0, "null_strength": 0.5},
        {"guidance": "hybrid", "schedule": "0-1:0"},
        {"guidance": "hybrid", "strength": 0.0},
    ],
)
def test_a_subject_scale_of_zero_is_the_base_bit_for_bit(
    base: DiffusersBase, identity: Identity, change: dict[str, Any]
) -> None:
    drawn = draw(base, [ASKED] * 2, identity, config(base_scale=2.5, **change))
    assert torch.equal(drawn, draw(base, [NOUN] * 2, None, config(guidance_scale=2.5)))


def test_each_branch_is_the_prediction_of_its_own_model(
    base: DiffusersBase, fresh_identity: Callable[..., Identity]
) -> None:
    identity = fresh_identity("miniature", "attention+geglu+text", scale=0.3)
    alone = [
        one_step(base, "", None),
        one_step(base, NOUN, None),
        one_step(base, "", identity),
        one_step(base, ASKED, identity),
    ]
    with counted(base) as (watched, calls, _):
        for index, expected in enumerate(alone):
            weights = tuple(float(index == column) for column in range(4))
            drawn = one_step(watched, ASKED, identity, guidance="weights", branch_weights=weights)
            torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-5)
            # Next to the others, all in one call, each row keeps its own adapter and its own encoding.
            weights = tuple(1 - 3e-6 if index == column else 1e-6 for column in range(4))
            drawn = one_step(watched, ASKED, identity, guidance="weights", branch_weights=weights)
            torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=1e-4)
    assert calls == [1, 4] * 4


@pytest.mark.parametrize(
    ("change", "each"),
    [
        ({}, [2, 2]),
        ({"guidance_scale": 1.0}, [1, 1]),
        ({"guidance": "hybrid"}, [2, 2]),
        ({"guidance": "hybrid", "subject_scale": 2.0}, [3, 3]),
        ({"guidance": "hybrid", "base_scale": 1.0, "subject_scale": 0.5}, [2, 2]),
        ({"guidance": "blend", "subject_scale": 0.5}, [4, 4]),
        # At t of about 1 and 0.5: the third branch only where it is mixed in.
        ({"guidance": "hybrid", "schedule": "0-0.7:0.5, 0.7-1:0"}, [2, 3]),
        ({"guidance": "hybrid", "subject_scale": 2.0, "active": (0.0, 0.7)}, [2, 3]),
    ],
)
def test_a_step_is_one_call_and_nothing_extra_is_evaluated(
    base: DiffusersBase, identity: Identity, change: dict[str, Any], each: list[int]
) -> None:
    with counted(base) as (watched, calls, prompts):
        draw(watched, [ASKED] * 2, identity, config(**change))
    assert calls == [2 * count for count in each]
    # Every text is encoded once.
    assert len(prompts) == 2 * len(set(prompts))


def test_the_base_is_asked_for_the_class_noun_only(base: DiffusersBase, identity: Identity) -> None:
    with counted(base) as (watched, _, prompts):
        draw(watched, [ASKED], identity, config(guidance="hybrid", subject_scale=2.0))
    assert set(prompts) == {"", NOUN, ASKED}


def test_a_neutral_reference_has_its_own_row(base: DiffusersBase, identity: Identity) -> None:
    neutral = replace(identity.scaled(-0.7), rank=identity.rank)
    away = config(guidance="reference-null", guidance_scale=2.0, steps=1, sampler="ddim")
    drawn = draw(base, [ASKED, NOUN], Subject(adapter=identity, neutral=neutral), away)
    stacked = {
        name: LoraPair(pair.down.repeat(2, 1, 1), pair.up.repeat(2, 1, 1)) for name, pair in identity.expand().items()
    }
    torch.testing.assert_close(
        draw(base, [ASKED, NOUN], Subject(adapter=stacked, neutral=neutral), away), drawn, rtol=1e-3, atol=1e-4
    )
    # At guidance 0 only the branch that guidance leads away from is left.
    nobody = replace(away, guidance_scale=0.0)
    torch.testing.assert_close(
        draw(base, [ASKED], Subject(adapter=identity, neutral=neutral), nobody),
        one_step(base, "", neutral),
        rtol=1e-4,
        atol=1e-5,
    )
    with pytest.raises(ConfigError, match="neutral reference's adapter, and there is none"):
        draw(base, [ASKED], identity, away)


def test_adapters_take_turns_over_noise(base: DiffusersBase, identity: Identity) -> None:
    other = identity.scaled(-1.0)
    first = Subject(bands=[AdapterBand(0, 0.7, other), AdapterBand(0.7, 1, identity)])
    # One step sees only pure noise.
    torch.testing.assert_close(one_step(base, ASKED, first), one_step(base, ASKED, identity))
    swapped = Subject(bands=[AdapterBand(0, 0.7, identity), AdapterBand(0.7, 1, other)])
    torch.testing.assert_close(one_step(base, ASKED, swapped), one_step(base, ASKED, other))
    assert not torch.allclose(draw(base, [ASKED], first, config()), draw(base, [ASKED], identity, config()))
    with pytest.raises(ConfigError, match=r"gap at \[0.5, 0.7\)"):
        draw(base, [ASKED], Subject(bands=[AdapterBand(0, 0.5, other), AdapterBand(0.7, 1, identity)]), config())
    with pytest.raises(ConfigError, match="overlap"):
        draw(base, [ASKED], Subject(bands=[AdapterBand(0, 0.8, other), AdapterBand(0.7, 1, identity)]), config())
    with pytest.raises(ConfigError, match="no room for another adapter"):
        draw(base, [ASKED], replace(first, adapter=identity), config())


def test_outside_its_band_an_identity_leaves_the_base(base: DiffusersBase, identity: Identity) -> None:
    base_alone = one_step(base, ASKED, None)
    assert torch.equal(one_step(base, ASKED, identity, active=(0.0, 0.9)), base_alone)
    assert not torch.allclose(one_step(base, ASKED, identity, active=(0.9, 1.0)), base_alone, atol=1e-3)


def test_the_rank_mask_keeps_the_strongest_components_in_noise(
    base: DiffusersBase, fresh_identity: Callable[..., Identity]
) -> None:
    weak, strong = (fresh_identity("miniature", scale=scale) for scale in (0.01, 0.3))
    # In two orthogonal directions of the bases, so that the strong one is the first component of the sum.
    both = weak.concatenated(strong)
    masked = one_step(base, ASKED, both, rank_share=0.5)
    canonical = both.canonicalized()
    first = {name: LoraPair(pair.down[:1], pair.up[:, :1]) for name, pair in canonical.expand().items()}
    torch.testing.assert_close(masked, one_step(base, ASKED, first), rtol=1e-3, atol=1e-4)


def test_a_masked_subject_is_the_subject_inside_and_the_base_outside(base: DiffusersBase, identity: Identity) -> None:
    everywhere = Subject(adapter=identity, mask=torch.ones(32, 32))
    torch.testing.assert_close(
        draw(base, [ASKED], everywhere, config()),
        draw(base, [ASKED], identity, config()),
        rtol=1e-3,
        atol=1e-4,
    )
    nowhere = Subject(adapter=identity, mask=torch.zeros(32, 32))
    torch.testing.assert_close(
        draw(base, [ASKED], nowhere, config()), draw(base, [NOUN], None, config()), rtol=1e-3, atol=1e-4
    )
    left = torch.zeros(32, 32)
    left[:, :16] = 1
    with counted(base) as (watched, calls, _):
        people = [Subject(adapter=identity, mask=left), Subject(adapter=identity.scaled(-1.0), mask=1 - left)]
        pair = draw(watched, [ASKED], people, config(guidance="base-null"))
    # The base's null and prompt, and each of the two people.
    assert calls == [4, 4]
    swapped = [replace(one, mask=1 - one.mask) for one in people]
    assert not torch.allclose(pair, draw(base, [ASKED], swapped, config(guidance="base-null")), atol=1e-3)


def test_masks_that_do_not_fit_are_refused(base: DiffusersBase, identity: Identity) -> None:
    def drawn(*masks: Tensor | None) -> Tensor:
        return draw(base, [ASKED], [Subject(adapter=identity, mask=mask) for mask in masks], config())

    with pytest.raises(ConfigError, match=r"mask 1 of 1 is 32 wide and 16 high, but the pictures are 4 to 4"):
        drawn(torch.ones(16, 32))
    with pytest.raises(ConfigError, match=r"values outside 0\.\.1"):
        drawn(2 * torch.ones(32, 32))
    with pytest.raises(ConfigError, match=r"overlap: together they reach 2\.00"):
        drawn(torch.ones(32, 32), torch.ones(32, 32))
    with pytest.raises(ConfigError, match="2 subjects need a mask each"):
        drawn(torch.ones(32, 32), None)


def test_the_answers_make_the_samplers_own_formula_the_mix() -> None:
    weights = BranchWeights(base_null=-4.0, base_prompt=3.0, subject_prompt=2.0)
    answered = answers(weights)
    assert answered.scale == 5
    assert answered.weights[PROMPT].used == {"base_prompt": 0.6, "subject_prompt": 0.4}
    assert answered.weights[NULL].used == {"base_null": 1.0}
    whole = answers(weights, is_whole=True)
    assert whole.scale == 1 and whole.weights == {PROMPT: weights, NULL: weights}


def test_a_step_asks_for_its_parts_and_mixes_them(identity: Identity) -> None:
    settings = config(guidance="hybrid", base_scale=5.0, subject_scale=2.0)
    step = Guidance(settings, resolve(get_base("miniature"), identity, settings, 1)).step(0.5, 5.0, torch.device("cpu"))
    seen: dict[Key, float] = {(NULL, None): 1.0, (PROMPT, None): 10.0, (PROMPT, 0): 100.0}
    asked: list[Key] = []

    def evaluate(parts: Sequence[Part]) -> list[Tensor]:
        asked.extend(part.key for part in parts)
        return [torch.full((1, 1, 2, 2), seen[part.key]) for part in parts]

    guided = step.guided(torch.zeros(1, 1, 2, 2), evaluate)
    assert sorted(asked, key=str) == sorted(seen, key=str)
    torch.testing.assert_close(guided, torch.full((1, 1, 2, 2), -4.0 * 1 + 3 * 10 + 2 * 100))
    # A sampler that asks for one of the two only is not told more.
    assert [part.key for part in step.parts([NULL], torch.zeros(1, 1, 2, 2))] == [(NULL, None)]


def test_rescaling_changes_the_contrast_and_zero_nothing(base: DiffusersBase, identity: Identity) -> None:
    plain = draw(base, [ASKED], identity, config(guidance_scale=5.0))
    assert torch.equal(plain, draw(base, [ASKED], identity, config(guidance_scale=5.0, rescale=0.0)))
    assert not torch.allclose(plain, draw(base, [ASKED], identity, config(guidance_scale=5.0, rescale=0.7)))
