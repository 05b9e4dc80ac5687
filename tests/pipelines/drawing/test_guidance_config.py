from __future__ import annotations

from typing import Any

import pytest

from hyperdream_core.errors import ConfigError
from hyperdream_core.pipelines.drawing.guidance_config import GuidanceConfig, Guide


def test_dials_left_out_are_the_guidance_scale() -> None:
    assert Guide(GuidanceConfig(guidance="hybrid", guidance_scale=4.0)).at(0.5).weights.used == {
        "base_null": -3.0,
        "subject_prompt": 4.0,
    }
    assert Guide(GuidanceConfig(guidance="blend", guidance_scale=4.0)).at(0.5).weights.used == {
        "subject_null": -3.0,
        "subject_prompt": 4.0,
    }


def test_the_schedule_multiplies_the_dials() -> None:
    guide = Guide(
        GuidanceConfig(guidance="hybrid", guidance_scale=4.0, schedule="base 0-1:0.5; subject 0-.5:1, .5-1:.25")
    )
    low, high = guide.at(0.2).weights, guide.at(0.7).weights
    assert (low.base_null, low.base_prompt, low.subject_prompt) == (-1.0, -2.0, 4.0)
    assert (high.base_null, high.base_prompt, high.subject_prompt) == (-1.0, 1.0, 1.0)


def test_the_null_branch_follows_the_subjects_share() -> None:
    guide = Guide(GuidanceConfig(guidance="hybrid", guidance_scale=4.0, subject_scale=1.0, null_strength=0.8))
    assert guide.at(0.5).null_strength == pytest.approx(0.2)
    assert Guide(GuidanceConfig(null_strength=0.3)).at(0.5).null_strength == 0.3


def test_without_an_active_adapter_the_subjects_dial_is_at_zero() -> None:
    guide = Guide(GuidanceConfig(guidance="hybrid", guidance_scale=4.0))
    assert guide.at(0.5, is_active=False).weights.used == {"base_null": -3.0, "base_prompt": 4.0}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"guidance_scale": -1.0}, "guidance_scale must be 0 or more"),
        ({"guidance": "hybrid", "subject_scale": -0.5}, "subject_scale must be 0 or more"),
        ({"null_strength": 1.5}, "null_strength must lie in 0..1, got 1.5"),
        ({"rescale": -0.1}, "rescale must lie in 0..1"),
        ({"rank_share": 2.0}, "rank_share must lie in 0..1"),
        ({"active": (0.6, 0.4)}, "active must be two noise levels from 0 to 1, start before end, got 0.6 0.4"),
        ({"active": (0.6,)}, "active must be two noise levels"),
        ({"guidance": "magic"}, "unknown guidance 'magic'; known: plain, hybrid"),
        ({"base_scale": 2.0}, "guidance 'base-null' has no dials, so base_scale does nothing; use hybrid, mix, blend"),
        ({"guidance": "base-null", "schedule": "default"}, "so schedule does nothing"),
        ({"guidance": "weights", "branch_weights": (1.0, 1.0, 0.0, 0.0)}, "sum to 2, expected 1"),
        ({"guidance": "weights"}, "0 branch weights, expected 4"),
        ({"branch_weights": (0.0, 0.0, 0.0, 1.0)}, "branch weights belong to guidance 'weights'"),
        ({"guidance": "hybrid", "schedule": "0-0.4:1, 0.5-1:0"}, "gap"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        GuidanceConfig(**change)
