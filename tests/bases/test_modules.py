"""The table of layers is what diffusers and transformers build for each family, no more and no less."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from hyperdream_core.bases import BASES, get_base
from hyperdream_core.bases.keys import from_kohya, from_ldm, from_peft, to_kohya, to_ldm, to_peft
from hyperdream_core.bases.modules import modules
from hyperdream_core.pipelines.diffusers.configurations import text_config, unet_config
from hyperdream_core.pipelines.diffusers.ldm_tensors import UNET

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel


def sizes(network: nn.Module) -> dict[str, tuple[int, int]]:
    """Name -> (inputs, outputs) of all linear layers and convolutions, but those that read the noise level and size."""
    found = {}
    for name, module in network.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and "_embedding." not in name:
            weight = module.weight
            found[name] = (weight[0].numel(), len(weight))
    return found


@pytest.mark.parametrize("name", list(BASES))
def test_the_table_has_every_layer_of_the_unet_in_its_size(name: str) -> None:
    family = get_base(name)
    shapes: dict[str, tuple[int, ...]] = {f"{UNET}middle_block.1.proj_in.weight": (1,) * (2 if name == "sdxl" else 4)}
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_config(family, shapes))
    table = {one.name: (one.inputs, one.outputs) for one in modules(family).values() if "text_" not in one.name}
    assert table == sizes(unet)


@pytest.mark.parametrize("name", list(BASES))
def test_the_table_has_every_layer_of_the_text_encoders_in_its_size(name: str) -> None:
    for encoder in get_base(name).text_encoders:
        with torch.device("meta"):
            network = CLIPTextModel(text_config(encoder))
        prefix = f"{encoder.name}.text_model."
        table = {
            one.name.removeprefix(prefix): (one.inputs, one.outputs)
            for one in modules(get_base(name)).values()
            if one.name.startswith(prefix)
        }
        assert table == {key.removeprefix("text_model."): size for key, size in sizes(network).items()}


@pytest.mark.parametrize("name", list(BASES))
def test_every_layer_has_one_name_in_each_dialect_and_comes_back(name: str) -> None:
    family = get_base(name)
    for to, back in ((to_ldm, from_ldm), (to_kohya, from_kohya), (to_peft, from_peft)):
        names = {to(layer, family) for layer in modules(family)}
        assert len(names) == len(modules(family))
        assert all(back(to(layer, family), family) == layer for layer in modules(family))
