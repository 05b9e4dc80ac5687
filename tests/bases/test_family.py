"""The layer tables against the real architectures, built from their published configurations without weights."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from hyperdream_core.bases import BASES, TARGET_SETS, UNET, get_base
from hyperdream_core.errors import ConfigError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # diffusers' and transformers' imports are not what is tested
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

# unet/config.json of runwayml/stable-diffusion-v1-5, stabilityai/stable-diffusion-2-1 and
# stabilityai/stable-diffusion-xl-base-1.0, as far as they shape the network; and of the miniature.
_SD1_BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
}
UNETS = {
    "sd15": {
        **_SD1_BLOCKS,
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "sd2": {
        **_SD1_BLOCKS,
        "sample_size": 96,
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sdxl": {
        "sample_size": 128,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": 2,
        "cross_attention_dim": 2048,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "miniature": {
        **_SD1_BLOCKS,
        "sample_size": 16,
        "block_out_channels": (96, 128, 128, 128),
        "layers_per_block": 1,
        "cross_attention_dim": 64,
        "attention_head_dim": 8,
    },
}
_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
_CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
_CLIP_MINIATURE = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT_ENCODERS = {
    "sd15": {"text_encoder": (CLIPTextModel, _CLIP_L)},
    "sd2": {"text_encoder": (CLIPTextModel, _CLIP_H)},
    "sdxl": {"text_encoder": (CLIPTextModel, _CLIP_L), "text_encoder_2": (CLIPTextModelWithProjection, _CLIP_G)},
    "miniature": {"text_encoder": (CLIPTextModel, _CLIP_MINIATURE)},
}


def build_unet(family: str) -> nn.Module:
    with torch.device("meta"):
        return UNet2DConditionModel(**UNETS[family])


def real_linears(family: str) -> dict[str, tuple[int, int]]:
    """Canonical name -> (in, out) of every linear layer of the real UNet and text encoders."""
    modules = {"": build_unet(family)}
    for name, (model, config) in TEXT_ENCODERS[family].items():
        with torch.device("meta"):
            encoder = model(CLIPTextConfig(**config))
        # Newer transformers have flattened CLIPTextModel; canonical names keep the level, as LoRA files do.
        modules[f"{name}." if hasattr(encoder, "text_model") else f"{name}.text_model."] = encoder
    return {
        prefix + name: (layer.in_features, layer.out_features)
        for prefix, module in modules.items()
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    }


def is_target(name: str, target_set: str) -> bool:
    if name.startswith("text_encoder"):
        return "text" in target_set and ".self_attn." in name
    return ".attn1." in name or ".attn2." in name or ("geglu" in target_set and name.endswith(".ff.net.0.proj"))


@pytest.mark.parametrize("family", list(BASES))
def test_each_table_is_exactly_the_real_architecture(family: str) -> None:
    linears = real_linears(family)
    for target_set in TARGET_SETS:
        table = {layer.name: (layer.in_features, layer.out_features) for layer in get_base(family).layers(target_set)}
        assert table == {name: size for name, size in linears.items() if is_target(name, target_set)}


@pytest.mark.parametrize(
    ("family", "counts"),
    [("sd15", (128, 144, 192)), ("sd2", (128, 144, 236)), ("sdxl", (560, 630, 806)), ("miniature", (80, 90, 98))],
)
def test_target_sets_have_the_known_numbers_of_linears_each_a_prefix_of_the_next(
    family: str, counts: tuple[int, ...]
) -> None:
    sets = [get_base(family).layers(target_set) for target_set in TARGET_SETS]
    assert tuple(map(len, sets)) == counts
    assert sets[2][: counts[1]] == sets[1]
    assert sets[1][: counts[0]] == sets[0]


def test_layer_digests_tell_families_and_target_sets_apart_and_never_change() -> None:
    digests = {(family, ts): BASES[family].layers_digest(ts) for family in BASES for ts in TARGET_SETS}
    assert len(set(digests.values())) == 12
    assert {family: digests[family, "attention"] for family in BASES} == GOLDEN


GOLDEN = {
    "sd15": "291a146dee9ec8d4d7969b72834b07fe5dec849b09e6f598c3f90afcc8fe3d5e",
    "sd2": "997435b35b184f71fd731cb7a60a54d2a830f0c5149e761e01e49588b3c4ef7e",
    "sdxl": "c8835ef72491c75791c555504813208b3f6a87cbd171567aae9700811cad0320",
    "miniature": "f61fa6d45d3591f0e3b294d46638227965b92c51453f95799da3373e15a9316c",
}


def test_an_unknown_target_set_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown target set 'all'; known: attention, attention\+geglu,"):
        get_base("sd15").layers("all")


@pytest.mark.parametrize("family", list(BASES))
def test_every_layer_lies_in_the_network_that_its_name_says(family: str) -> None:
    base = get_base(family)
    found = {base.part_of(layer.name) for layer in base.layers("attention+geglu+text")}
    assert found == {UNET, *(encoder.name for encoder in base.text_encoders)}
    assert {base.part_of(layer.name) for layer in base.layers("attention+geglu")} == {UNET}


def test_only_a_whole_prefix_names_a_text_encoder() -> None:
    assert get_base("sdxl").part_of("text_encoder_2.text_model.x") == "text_encoder_2"
    assert get_base("sd15").part_of("text_encoder_2.text_model.x") == UNET
    assert get_base("sd15").part_of("text_encoders.x") == UNET
