from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hyperdream_core.errors import BaseMismatchError, ConfigError
from hyperdream_core.identity import Adapter
from hyperdream_core.ops.scales import ScaleChange
from tests.identities import make_scales

BANDS = ((0.0, 0.25), (0.5, 1.0))
FIRST = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def test_tuned_scales_are_an_adapter_with_a_set_for_each_band() -> None:
    scales = make_scales("miniature", bands=BANDS)
    assert isinstance(scales, Adapter) and scales.sides == "both"
    low, high = (scales.changes(band)[FIRST] for band in BANDS)
    assert low.scale_out.shape == (96,) and not torch.equal(low.scale_out, high.scale_out)
    assert make_scales("miniature", is_two_sided=False).sides == "out"
    with pytest.raises(ConfigError, match=r"have the noise bands \[0, 0.25\) and \[0.5, 1\), not \[0, 1\)"):
        scales.changes((0.0, 1.0))


def test_another_bases_integers_are_refused_with_both_digests() -> None:
    scales = make_scales("miniature")
    scales.check_integers(scales.integers)
    with pytest.raises(
        BaseMismatchError, match=r"trained on a base in int4 with the integers 0123456789ab, but this one"
    ):
        scales.check_integers("f" * 64)


def test_scales_that_are_not_of_their_base_are_refused() -> None:
    scales = make_scales("miniature", bands=BANDS)
    low, high = scales.scales
    with pytest.raises(ConfigError, match="1 sets of scales for 2 noise bands"):
        replace(scales, scales=(low,))
    with pytest.raises(ConfigError, match=r"starts below 0.5, where another ends"):
        replace(scales, bands=((0.0, 0.5), (0.4, 1.0)))
    missing = {name: change for name, change in high.items() if name != FIRST}
    with pytest.raises(BaseMismatchError, match=r"'down_blocks.0.*to_q' is missing"):
        replace(scales, scales=(low, missing))
    with pytest.raises(BaseMismatchError, match="'conv_in' is none of them"):
        replace(scales, scales=(low, {**high, "conv_in": high[FIRST]}))
    for wrong in (ScaleChange(torch.zeros(95), torch.zeros(96)), ScaleChange(torch.zeros(96))):
        with pytest.raises(BaseMismatchError, match=r"but it needs \(96,\) and \(96,\)"):
            replace(scales, scales=(low, {**high, FIRST: wrong}))
    broken = ScaleChange(torch.full((96,), torch.nan), torch.zeros(96))
    with pytest.raises(ConfigError, match="has scales that are not finite"):
        replace(scales, scales=(low, {**high, FIRST: broken}))
