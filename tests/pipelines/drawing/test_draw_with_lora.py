"""A LoRA of any program draws, on our own base, what its changes merged into the weights draw."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from hyperdream_core.bases import get_base
from hyperdream_core.bases.keys import to_kohya, to_ldm
from hyperdream_core.bases.modules import modules
from hyperdream_core.formats.lora_file import read_lora_file
from hyperdream_core.pipelines.diffusers.diffusers_base import DiffusersBase
from hyperdream_core.pipelines.drawing.draw import DrawConfig, draw

UNET = (
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.1.downsamplers.0.conv",
    "mid_block.resnets.1.time_emb_proj",
    "up_blocks.2.resnets.0.conv_shortcut",
    "up_blocks.3.attentions.1.proj_in",
    "up_blocks.3.attentions.0.transformer_blocks.0.ff.net.2",
    "conv_out",
)
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"


def test_a_lora_of_convolutions_projections_and_text_draws_what_merging_it_draws(
    base: DiffusersBase, tmp_path: Path
) -> None:
    family, generator = get_base("miniature"), torch.Generator().manual_seed(3)
    text = dict(base.text_encoders[0].named_parameters())
    weights = {name: dict(base.unet.named_parameters())[f"{name}.weight"] for name in UNET}
    weights[TEXT] = next(text[name] for name in text if name.endswith("layers.0.self_attn.q_proj.weight"))
    tensors, changes = {}, {}
    for name, weight in weights.items():
        down = torch.randn(2, *weight.shape[1:], generator=generator) / weight[0].numel() ** 0.5
        up = 0.3 * torch.randn(len(weight), 2, *(1 for _ in weight.shape[2:]), generator=generator)
        in_ldm = f"lora_unet_{to_ldm(name, family)}".replace(".", "_")
        key = in_ldm if name.endswith("conv1") else to_kohya(name, family)
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1)}
        changes[name] = 0.5 * (up.flatten(1) @ down.flatten(1)).view_as(weight)
    save_file(tensors, tmp_path / "style.safetensors")
    found = read_lora_file(tmp_path / "style.safetensors")
    assert found.family == "miniature" and found.pairs.keys() == weights.keys() <= modules(family).keys()
    config = DrawConfig(steps=2, size=32, guidance="plain")
    live = draw(base, ["a face, smiling"], found.pairs, config)
    plain = draw(base, ["a face, smiling"], None, config)
    originals = {name: weight.data for name, weight in weights.items()}
    try:
        for name, weight in weights.items():
            weight.data = weight.data + changes[name]
        wanted = draw(base, ["a face, smiling"], None, config)
    finally:
        for name, weight in weights.items():
            weight.data = originals[name]
    assert float((wanted - plain).abs().mean()) > 1e-3
    torch.testing.assert_close(live, wanted, atol=2e-4, rtol=1e-3)
