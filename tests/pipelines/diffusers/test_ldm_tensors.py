"""Where single files keep their tensors, against diffusers' own converters and the sizes that were published."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from hyperdream_core.bases import get_base
from hyperdream_core.bases.family import TextEncoderShape
from hyperdream_core.formats.container import Entry
from hyperdream_core.pipelines.diffusers.building import planned
from hyperdream_core.pipelines.diffusers.configurations import text_config, unet_config
from hyperdream_core.pipelines.diffusers.ldm_tensors import UNET, VAE, text_sources, unet_sources, vae_sources
from hyperdream_core.pipelines.diffusers.weights import WeightFiles


def files_of(tensors: dict[str, Tensor]) -> WeightFiles:
    """As if they lay in a file."""
    path = Path("x.safetensors")
    table = {name: Entry(tuple(tensor.shape), "F32") for name, tensor in tensors.items()}
    return WeightFiles(path, table, dict.fromkeys(table, path), {})


@pytest.mark.parametrize("name", ["sd15", "sd2", "sdxl"])
def test_the_unets_of_real_checkpoints_are_found_as_diffusers_converts_them(name: str) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    family = get_base(name)
    shapes: dict[str, tuple[int, ...]] = {f"{UNET}middle_block.1.proj_in.weight": (1,) * (4 if name == "sd15" else 2)}
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_config(family, shapes))
    millions = sum(parameter.numel() for parameter in unet.parameters()) // 1_000_000
    assert millions == {"sd15": 859, "sd2": 865, "sdxl": 2567}[name]  # as published
    source = unet_sources(family)
    ldm = {source(key).name: tensor for key, tensor in unet.state_dict().items()}
    assert len(ldm) == len(unet.state_dict())
    converted = convert_ldm_unet_checkpoint(ldm, unet_config(family, shapes))
    assert all(converted[key] is ldm[source(key).name] for key in unet.state_dict())


def test_a_vae_is_found_as_diffusers_converts_it() -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    config = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (32, 64, 64, 96),
        "layers_per_block": 2,
    }
    vae = AutoencoderKL(**config)
    source, ldm = vae_sources(4), {}
    for name, tensor in vae.state_dict().items():
        one = source(name)
        ldm[one.name] = tensor.reshape(one.shapes(tuple(tensor.shape))[-1])
    converted = convert_ldm_vae_checkpoint(dict(ldm), config)
    assert converted.keys() == vae.state_dict().keys()
    for name, tensor in vae.state_dict().items():
        assert torch.equal(source(name).taken(ldm[source(name).name]), tensor) and torch.equal(converted[name], tensor)
    assert all(name.startswith(VAE) for name in ldm)


def test_an_open_clip_encoder_is_split_as_it_was_fused() -> None:
    from transformers import CLIPTextModelWithProjection

    shape = TextEncoderShape(
        name="text_encoder_2", width=8, layers=2, ldm_prefix="conditioner.embedders.1.model", is_open_clip=True
    )
    model = CLIPTextModelWithProjection(text_config(shape)).train(False)
    prefix = f"{shape.ldm_prefix}."
    state = {name.removeprefix("text_model."): tensor for name, tensor in model.state_dict().items()}
    fused = {
        prefix + "positional_embedding": state["embeddings.position_embedding.weight"],
        prefix + "token_embedding.weight": state["embeddings.token_embedding.weight"],
        prefix + "text_projection": state["text_projection.weight"].T,
        prefix + "logit_scale": torch.tensor(1.0),
    }
    for end in ("weight", "bias"):
        fused[f"{prefix}ln_final.{end}"] = state[f"final_layer_norm.{end}"]
        for index in range(2):
            theirs, ours = f"{prefix}transformer.resblocks.{index}.", f"encoder.layers.{index}."
            attention = [state[f"{ours}self_attn.{part}_proj.{end}"] for part in "qkv"]
            fused[f"{theirs}attn.in_proj_{end}"] = torch.cat(attention)
            fused[f"{theirs}attn.out_proj.{end}"] = state[f"{ours}self_attn.out_proj.{end}"]
            for old, new in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2")):
                fused[f"{theirs}{old}.{end}"] = state[f"{ours}{new}.{end}"]
            for old, new in (("c_fc", "fc1"), ("c_proj", "fc2")):
                fused[f"{theirs}mlp.{old}.{end}"] = state[f"{ours}mlp.{new}.{end}"]
    weights = files_of(fused)
    sources = text_sources(shape, weights.table)
    plan = planned(lambda: CLIPTextModelWithProjection(text_config(shape)), weights, sources, (), "get it again")
    tensors = {name: source.taken(fused[source.name]) for name, source in plan.sources.items()}
    assert {name.removeprefix("text_model."): tensor.tolist() for name, tensor in tensors.items()} == {
        name: tensor.tolist() for name, tensor in state.items() if not name.endswith("position_ids")
    }
