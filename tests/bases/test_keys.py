from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from hyperdream_core.bases import BASES, get_base
from hyperdream_core.bases.keys import from_kohya, from_ldm, from_peft, to_kohya, to_ldm, to_peft
from hyperdream_core.errors import BaseMismatchError

EVERYTHING = "attention+geglu+text"


@pytest.mark.parametrize("family", list(BASES))
@pytest.mark.parametrize(("there", "back"), [(to_ldm, from_ldm), (to_kohya, from_kohya), (to_peft, from_peft)])
def test_every_layer_survives_each_dialect_and_back(family: str, there, back) -> None:  # type: ignore[no-untyped-def]
    base = get_base(family)
    names = [layer.name for layer in base.layers(EVERYTHING)]
    translated = [there(name, base) for name in names]
    assert len(set(translated)) == len(names)
    assert [back(key, base) for key in translated] == names


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_kohya_keys_have_no_dots(family: str) -> None:
    # A1111 splits keys at the first dot.
    base = get_base(family)
    assert all("." not in to_kohya(layer.name, base) for layer in base.layers(EVERYTHING))


def block(side: str) -> str:
    return f"{side}.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    ("family", "layer", "ldm"),
    [
        # HOSTS C3.4, and ComfyUI's and A1111's module paths.
        ("sd15", block("down_blocks.0.attentions.0"), block("input_blocks.1.1")),
        ("sd15", block("down_blocks.2.attentions.1"), block("input_blocks.8.1")),
        ("sd15", block("mid_block.attentions.0"), block("middle_block.1")),
        ("sd15", block("up_blocks.1.attentions.0"), block("output_blocks.3.1")),
        ("sd15", block("up_blocks.3.attentions.2"), block("output_blocks.11.1")),
        ("sdxl", block("down_blocks.1.attentions.0"), block("input_blocks.4.1")),
        ("sdxl", block("up_blocks.0.attentions.2"), block("output_blocks.2.1")),
        (
            "sd15",
            "text_encoder.text_model.encoder.layers.3.self_attn.q_proj",
            "cond_stage_model.transformer.text_model.encoder.layers.3.self_attn.q_proj",
        ),
        (
            "sdxl",
            "text_encoder.text_model.encoder.layers.3.self_attn.q_proj",
            "conditioner.embedders.0.transformer.text_model.encoder.layers.3.self_attn.q_proj",
        ),
        (
            "sdxl",
            "text_encoder_2.text_model.encoder.layers.3.self_attn.v_proj",
            "conditioner.embedders.1.model.transformer.resblocks.3.attn.in_proj_weight[v]",
        ),
        (
            "sd2",
            "text_encoder.text_model.encoder.layers.22.self_attn.out_proj",
            "cond_stage_model.model.transformer.resblocks.22.attn.out_proj",
        ),
    ],
)
def test_ldm_paths_are_those_of_checkpoints(family: str, layer: str, ldm: str) -> None:
    base = get_base(family)
    assert to_ldm(layer, base) == ldm
    assert from_ldm(ldm, base) == layer


def test_a_checkpoints_prefix_is_ignored() -> None:
    base = get_base("sd15")
    for prefix in ("model.diffusion_model.", "diffusion_model."):
        assert from_ldm(prefix + block("middle_block.1"), base) == block("mid_block.attentions.0")


@pytest.mark.parametrize(
    ("family", "key", "layer"),
    [
        (
            "sd15",
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
            block("down_blocks.0.attentions.0"),
        ),
        (
            "sd15",
            "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0",
            "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
        ),
        (
            "sd15",
            "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj",
            "up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj",
        ),
        (
            "sd15",
            "lora_te_text_model_encoder_layers_11_self_attn_out_proj",
            "text_encoder.text_model.encoder.layers.11.self_attn.out_proj",
        ),
        (
            "sdxl",
            "lora_te1_text_model_encoder_layers_0_self_attn_k_proj",
            "text_encoder.text_model.encoder.layers.0.self_attn.k_proj",
        ),
        (
            "sdxl",
            "lora_te2_text_model_encoder_layers_31_self_attn_k_proj",
            "text_encoder_2.text_model.encoder.layers.31.self_attn.k_proj",
        ),
    ],
)
def test_kohya_keys_are_those_that_lora_loaders_know(family: str, key: str, layer: str) -> None:
    base = get_base(family)
    assert to_kohya(layer, base) == key
    assert from_kohya(key, base) == layer


def test_kohya_keys_of_sdxl_trainers_are_read_too() -> None:
    base = get_base("sdxl")
    for layer in base.layers("attention+geglu"):
        key = "lora_unet_" + to_ldm(layer.name, base).replace(".", "_")
        assert from_kohya(key, base) == layer.name


def test_peft_keys_are_prefixed_module_paths() -> None:
    base, text = get_base("sd15"), "text_encoder.text_model.encoder.layers.0.self_attn.k_proj"
    assert to_peft(block("mid_block.attentions.0"), base) == "unet." + block("mid_block.attentions.0")
    assert to_peft(text, base) == text


@pytest.mark.parametrize("back", [from_ldm, from_kohya, from_peft])
def test_a_foreign_key_is_refused_by_name(back) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BaseMismatchError, match="'lora_unet_time_embedding_linear_1' names no layer of Stable"):
        back("lora_unet_time_embedding_linear_1", get_base("sd15"))


def diffusers_converter():  # type: ignore[no-untyped-def]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' import is not what is tested
        from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
    return convert_ldm_unet_checkpoint


@pytest.mark.parametrize("family", list(BASES))
def test_ldm_paths_are_what_diffusers_own_conversion_reads(family: str) -> None:
    from .test_family import UNETS, build_unet  # type: ignore[import-not-found]

    base, unet = get_base(family), build_unet(family)
    places = {layer.name: index for index, layer in enumerate(base.layers("attention+geglu"))}
    # An ldm checkpoint whose attention tensors carry their place in our list; the rest is filled in from diffusers'
    # side, because the converter wants a whole UNet.
    checkpoint = {
        f"model.diffusion_model.{to_ldm(name, base)}.weight": torch.full((1,), float(place))
        for name, place in places.items()
    }
    checkpoint |= whole_unet_in_ldm_names(unet, base)
    config = UNETS[family] | {"class_embed_type": None, "addition_embed_type": UNETS[family].get("addition_embed_type")}
    converted = diffusers_converter()(checkpoint, config)
    found = {name.removesuffix(".weight"): int(value.item()) for name, value in converted.items() if value.numel()}
    assert found == places


def whole_unet_in_ldm_names(unet: nn.Module, base) -> dict[str, torch.Tensor]:  # type: ignore[no-untyped-def]
    """Empty tensors under the names outside our table that the converter looks up."""
    names = ["time_embed.0", "time_embed.2", "input_blocks.0.0", "out.0", "out.2", "label_emb.0.0", "label_emb.0.2"]
    names += [f"middle_block.{index}.in_layers.0" for index in (0, 2)]
    per_block = base.unet.layers_per_block + 1
    blocks = len(base.unet.channels)
    for index in range(1, blocks * per_block):
        is_resampler = index % per_block == 0
        names.append(f"input_blocks.{index}.0.{'op' if is_resampler else 'in_layers.0'}")
    for index in range(blocks * per_block):
        names.append(f"output_blocks.{index}.0.in_layers.0")
    return {f"model.diffusion_model.{name}.{kind}": torch.empty(0) for name in names for kind in ("weight", "bias")}
