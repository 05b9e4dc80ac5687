"""Polishing and drawing on a quantised base: through the live path, and the base is bit for bit as before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hyperdream_core.models.quantized_network import quantize_network_
from hyperdream_core.models.recomputed import recomputed
from hyperdream_core.pipelines.diffusers.diffusers_base import DiffusersBase
from hyperdream_core.pipelines.drawing.draw import DrawConfig, draw
from hyperdream_core.pipelines.polishing.polish import polish
from hyperdream_core.pipelines.polishing.polish_config import PolishConfig
from tests.identities import make_identity

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
