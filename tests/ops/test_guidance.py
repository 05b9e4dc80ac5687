from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyperdream_core.errors import ConfigError
from hyperdream_core.ops.guidance import (
    BRANCHES,
    PRESETS,
    BranchWeights,
    Dials,
    branch_weights,
    combine,
    composed,
    preset_weights,
    rescale,
)
from hyperdream_core.ops.noise import DiscreteDiffusion

DIALS = Dials(guidance_scale=3.0, base_scale=5.0, subject_scale=0.5)


def outputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(2, 3, 5, 7, generator=generator) for name in BRANCHES}


def test_the_combination_is_the_weighted_sum() -> None:
    parts = outputs()
    weights = BranchWeights(base_null=-4.0, base_prompt=1.5, subject_null=0.5, subject_prompt=3.0)
    expected = -4 * parts["base_null"] + 1.5 * parts["base_prompt"] + 0.5 * parts["subject_null"]
    expected = expected + 3 * parts["subject_prompt"]
    torch.testing.assert_close(combine(parts, weights), expected)


def test_branches_of_weight_zero_are_not_asked_for() -> None:
    parts = outputs()
    alone = combine({"subject_prompt": parts["subject_prompt"]}, BranchWeights(subject_prompt=1.0))
    assert alone is parts["subject_prompt"]


@pytest.mark.parametrize(
    ("name", "dials", "expected"),
    [
        # docs/methods.md, "Guidance", worked out by hand: w_b0, w_bc, w_p0, w_pc.
        ("plain", (3, 5, 2), (0, 0, -2, 3)),
        ("hybrid", (3, 5, 2), (-4, 3, 0, 2)),
        ("base-null", (3, 5, 2), (-2, 0, 0, 3)),
        ("mix", (3, 5, 0.25), (-4, 3.75, 0, 1.25)),
        ("blend", (3, 5, 0.25), (-3, 3.75, -0.5, 0.75)),
        ("reference-null", (3, 5, 2), (0, 0, -2, 3)),
    ],
)
def test_presets_are_the_table_of_the_methods(name: str, dials: tuple[float, ...], expected: tuple[float, ...]) -> None:
    values = Dials(guidance_scale=dials[0], base_scale=dials[1], subject_scale=dials[2])
    assert PRESETS[name].weights(values) == branch_weights(tuple(map(float, expected)))


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.has_dials])
def test_a_subject_scale_of_zero_is_the_bases_guidance(name: str) -> None:
    dials = Dials(guidance_scale=3.0, base_scale=2.3, subject_scale=0.0)
    preset = PRESETS[name]
    for null_strength in (0.0, 0.5, 1.0):
        # What the guide makes of a null strength: nothing of the adapter is left where the subject takes no part.
        reached = null_strength * preset.share(dials)
        weights = preset_weights(preset, dials, reached)
        assert weights.used == {"base_null": 1 - 2.3, "base_prompt": 2.3}


def test_neutral_dials_are_plain_guidance() -> None:
    one = Dials(guidance_scale=3.0, base_scale=1.0, subject_scale=1.0)
    plain = PRESETS["plain"].weights(Dials(guidance_scale=1.0, base_scale=0.0, subject_scale=0.0))
    for name in ("hybrid", "mix"):
        assert PRESETS[name].weights(one) == plain
    assert PRESETS["blend"].weights(one) == PRESETS["plain"].weights(one)
    same = Dials(guidance_scale=2.5, base_scale=2.5, subject_scale=2.5)
    assert preset_weights(PRESETS["hybrid"], same, 1.0) == PRESETS["plain"].weights(same)


def test_the_null_branch_moves_to_the_model_that_has_it() -> None:
    plain, hybrid = PRESETS["plain"], PRESETS["hybrid"]
    assert preset_weights(plain, DIALS, 0.0) == PRESETS["base-null"].weights(DIALS)
    assert preset_weights(plain, DIALS, 0.5) == plain.weights(DIALS)
    assert preset_weights(hybrid, DIALS, 0.5).used == {"base_prompt": 4.5, "subject_null": -4.0, "subject_prompt": 0.5}


@pytest.mark.parametrize("values", [(0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 0.0, 0.0), (0.0, 0.0, float("nan"), 1.0)])
def test_weights_that_do_not_sum_to_one_are_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"sum to .* expected 1"):
        branch_weights(values)


def test_another_number_of_weights_is_refused() -> None:
    with pytest.raises(ConfigError, match="3 branch weights, expected 4"):
        branch_weights((1.0, 0.0, 0.0))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_mixing_outputs_and_mixing_the_clean_samples_they_stand_for_are_the_same(kind: str) -> None:
    process, t = DiscreteDiffusion(torch.tensor([0.6, 0.3]), kind), torch.tensor([0.25, 0.75])
    parts, x_t = outputs(), outputs()["base_prompt"].flip(0)
    weights = BranchWeights(base_null=-1.0, base_prompt=0.5, subject_prompt=1.5)
    clean = {name: process.clean(output, x_t, t) for name, output in parts.items()}
    torch.testing.assert_close(
        process.clean(combine(parts, weights), x_t, t), combine(clean, weights), rtol=1e-4, atol=1e-4
    )


def test_rescaling_all_the_way_gives_the_prompted_spread() -> None:
    guided, prompted = 5 * outputs()["base_null"], outputs()["base_prompt"]
    axes = (1, 2, 3)
    torch.testing.assert_close(rescale(guided, prompted, 1.0).std(axes), prompted.std(axes))
    torch.testing.assert_close(rescale(guided, prompted, 0.0), guided)
    halfway = (guided.std(axes) + prompted.std(axes)) / 2
    torch.testing.assert_close(rescale(guided, prompted, 0.5).std(axes), halfway)


def test_masks_put_each_subject_in_its_place_and_the_base_around() -> None:
    base, subjects = torch.zeros(1, 2, 2, 2), torch.stack([torch.ones(1, 2, 2, 2), 2 * torch.ones(1, 2, 2, 2)])
    masks = torch.tensor([[[1.0, 0.0], [0.5, 0.0]], [[0.0, 1.0], [0.5, 0.0]]])
    expected = torch.tensor([[1.0, 2.0], [1.5, 0.0]]).expand(1, 2, 2, 2)
    torch.testing.assert_close(composed(base, subjects, masks), expected)
