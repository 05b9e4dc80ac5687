from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional

from hyperdream_core.errors import FileFormatError
from hyperdream_core.models.hypernetwork import Hypernetwork, HypernetworkConfig
from hyperdream_core.models.image_encoder import build_image_encoder
from hyperdream_core.pipelines.predictors.frozen_encoder import load_image_encoder
from hyperdream_core.pipelines.predictors.hypernetwork_predictor import save_hypernetwork

SHAPE = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32,
         "patch_size": 16}  # fmt: skip


def saved(kind: str, folder: Path) -> Any:
    """A model of `transformers` with random weights, saved as it saves them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(kind, **({} if kind in ("clip", "siglip") else SHAPE))
        if kind in ("clip", "siglip"):
            config = type(config)(vision_config=SHAPE, text_config={**SHAPE, "vocab_size": 99}, projection_dim=8)
        model = transformers.AutoModel.from_config(config).train(False)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", ["clip", "clip_vision_model", "dinov2", "siglip", "siglip_vision_model", "vit"])
def test_a_folder_gives_the_features_that_its_own_model_does(kind: str, tmp_path: Path) -> None:
    model = saved(kind, tmp_path)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": std, "size": 32}))
    encoder = load_image_encoder(tmp_path)
    pictures = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    small = functional.interpolate(pictures, (32, 32), mode="bicubic", antialias=True).clamp(0, 1)
    pixels = (small - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    vision = getattr(model, "vision_model", model)
    with torch.no_grad():
        expected = vision(pixel_values=pixels).last_hidden_state
        found = encoder.network.features(pictures)
    torch.testing.assert_close(found.tokens, expected, rtol=1e-4, atol=0.02)
    # What a predictor's file will carry makes the same network, and it is known by its numbers.
    again = build_image_encoder(encoder.config)
    again.load_state_dict(encoder.network.state_dict())
    assert load_image_encoder(tmp_path).digest == encoder.digest and len(encoder.digest) == 64


def test_other_weights_have_another_digest(tmp_path: Path) -> None:
    saved("vit", tmp_path)
    before = load_image_encoder(tmp_path).digest
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["layernorm.weight"][3] += 0.1
    save_file(tensors, tmp_path / "model.safetensors")
    assert load_image_encoder(tmp_path).digest != before


def test_a_predictor_s_file_gives_its_own(tmp_path: Path) -> None:
    shape = {"kind": "conv", "channels": [8, 8, 8, 8], "width": 16, "image_size": 32}
    network = Hypernetwork(HypernetworkConfig(family="miniature", width=16, heads=2, image_encoder=shape)).train(False)
    save_hypernetwork(tmp_path / "predictor.safetensors", network)
    encoder = load_image_encoder(tmp_path / "predictor.safetensors")
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(encoder.network.features(pictures).pooled, network.encoder.features(pictures).pooled)
    assert encoder.name == "predictor.safetensors" and not any(p.requires_grad for p in encoder.network.parameters())


def test_a_folder_without_weights_with_others_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    saved("vit", tmp_path)
    path, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    tensors, text = load_file(path), config.read_text()

    def refused(match: str) -> None:
        with pytest.raises(FileFormatError, match=match):
            load_image_encoder(tmp_path)

    path.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    refused(r"has no model.safetensors, so it is no image encoder .* saved as safetensors, or a predictor's file")
    save_file({name: tensor for name, tensor in tensors.items() if name != "layernorm.bias"}, path)
    refused(r"lacks the tensor '.*layernorm.bias'")
    save_file(tensors, path)
    config.write_text(text.replace('"hidden_size": 8', '"hidden_size": 12'))
    refused(r"has no weights that go with its config.json")
    config.write_text(text.replace('"hidden_size": 8', '"hidden_size": 70000'))
    refused("config.json: describes no image encoder that can be built")
    config.write_text(text.replace('"model_type": "vit"', '"model_type": "llama"'))
    refused("config.json: is of the model type 'llama', but one of clip")
