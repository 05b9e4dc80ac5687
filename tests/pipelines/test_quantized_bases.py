"""Polishing and drawing on a quantised base: through the live path, and the base is bit for bit as before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hyperdream_core.errors import ConfigError
from hyperdream_core.models.adapted_linear import merged
from hyperdream_core.models.quantized_network import integers_digest, quantize_network_
from hyperdream_core.models.recomputed import recomputed
from hyperdream_core.ops.scales import ScaleChange
from hyperdream_core.pipelines.diffusers.diffusers_base import DiffusersBase
from hyperdream_core.pipelines.drawing.draw import DrawConfig, draw
from hyperdream_core.pipelines.drawing.subjects import Subject
from hyperdream_core.pipelines.polishing.polish import polish
from hyperdream_core.pipelines.polishing.polish_config import PolishConfig
from tests.identities import make_identity, make_scales

CONFIG = PolishConfig(steps=2, rank=2, batch=1, crops=0, learning_rate=0.1, target_set="attention+geglu+text")


@pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
def test_polishing_and_drawing_leave_a_quantised_base_as_it_was(
    make_base: Callable[[int], DiffusersBase], references: Tensor, kind: str
) -> None:
    base = make_base(1)
    quantize_network_(base.unet, kind, fit="min-max")
    before = {name: tensor.clone() for name, tensor in base.unet.state_dict().items()}
    config, prompts = DrawConfig(steps=2, size=32, guidance="hybrid"), ["a sks face"]
    plain = draw(base, prompts, None, config)
    result = polish(base, references, None, CONFIG)
    pictures = draw(base, prompts, result.identity, config)
    assert not torch.equal(pictures, plain)
    assert torch.equal(draw(base, prompts, None, config), plain)
    assert base.unet.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.unet.state_dict().items())


def test_polishing_a_quantised_base_is_polishing_the_weights_that_its_codes_stand_for(
    make_base: Callable[[int], DiffusersBase], references: Tensor
) -> None:
    """The same base with its layers exchanged for plain ones with those weights."""
    from torch import nn

    from hyperdream_core.models.quantized_linear import QuantizedLayer
    from hyperdream_core.ops.quantize import dequantize

    base, twin = make_base(1), make_base(1)
    quantize_network_(base.unet, "int4", fit="min-max")
    for name, layer in base.unet.named_modules():
        if isinstance(layer, QuantizedLayer):
            plain = twin.unet.get_submodule(name)
            assert isinstance(plain, (nn.Linear, nn.Conv2d))
            plain.weight.copy_(dequantize(layer.quantized))
    ours, theirs = (polish(one, references, make_identity("miniature"), CONFIG) for one in (base, twin))
    torch.testing.assert_close(torch.tensor(ours.losses), torch.tensor(theirs.losses), rtol=1e-4, atol=1e-5)
    with recomputed(base.unet):
        again = polish(base, references, make_identity("miniature"), CONFIG)
    assert again.losses == ours.losses


def test_tuned_scales_draw_in_their_bands_as_merged_ones_do(make_base: Callable[[int], DiffusersBase]) -> None:
    base, prompts = make_base(1), ["a sks face", "a sks face, sad"]
    quantize_network_(base.unet, "int8", fit="min-max")
    config = DrawConfig(steps=2, size=32, guidance="plain", guidance_scale=1.0)
    scales = make_scales("miniature")
    scales = replace(
        scales, scales=tuple({n: _times(change, 20) for n, change in one.items()} for one in scales.scales)
    )
    plain, live = draw(base, prompts, None, config), draw(base, prompts, scales, config)
    with merged(base.unet, scales.changes((0.0, 1.0))):
        torch.testing.assert_close(draw(base, prompts, None, config), live, rtol=1e-3, atol=1e-4)
    assert float((live - plain).abs().max()) > 0.01

    late, early = (replace(scales, bands=(band,)) for band in ((0.0, 0.25), (0.25, 1.0)))
    assert torch.equal(draw(base, prompts, early, config), live), "no level of two steps lies under 0.25"
    assert torch.equal(draw(base, prompts, late, config), plain)

    (changes,) = scales.scales
    each = {n: ScaleChange(torch.stack([one.scale_out, 0 * one.scale_out]),
                           torch.stack([one.scale_in, 0 * one.scale_in])) for n, one in changes.items()}  # fmt: skip
    own = draw(base, prompts, Subject(adapter=each), replace(config, batch=1))
    torch.testing.assert_close(own[0], live[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(own[1], plain[1], rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match="has a ScaleChange, which has no rank to mask over the noise"):
        draw(base, prompts, scales, replace(config, rank_share=0.5))


def test_the_digest_of_a_base_is_the_one_that_its_scales_ask_for(make_base: Callable[[int], DiffusersBase]) -> None:
    base, other = make_base(1), make_base(2)
    digests = []
    for one in (base, base, other):
        if one is other or not digests:
            quantize_network_(one.unet, "int4", fit="min-max")
        layers = {layer.name: one.unet.get_submodule(layer.name) for layer in one.family.layers("attention")}
        digests.append(integers_digest(layers))
    assert digests[0] == digests[1] != digests[2]
    replace(make_scales("miniature"), integers=digests[0]).check_integers(digests[1])


def _times(change: ScaleChange, factor: float) -> ScaleChange:
    return ScaleChange(change.scale_out * factor, change.scale_in * factor)
