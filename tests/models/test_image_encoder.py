from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyperdream_core.errors import ConfigError
from hyperdream_core.models.image_encoder import (
    ConvImageEncoder,
    ImageFeatures,
    RegressionHead,
    VitImageEncoder,
    build_image_encoder,
    combine,
)

TINY_CONV = {"kind": "conv", "channels": [8, 8, 16, 24], "blocks": [1, 1, 1], "width": 12, "image_size": 32}
TINY_VITS = {
    "clip_vision_model": {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                          "image_size": 16, "patch_size": 8},
    "dinov2": {"hidden_size": 12, "mlp_ratio": 1, "num_hidden_layers": 1, "num_attention_heads": 2,
               "image_size": 16, "patch_size": 8},
    "vit": {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 16, "patch_size": 8},
}  # fmt: skip


def pictures(count: int, size: int = 32) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(4))


def test_the_default_sees_8x8_tokens_in_128_px() -> None:
    features = ConvImageEncoder()(pictures(1, 128))
    assert features.tokens.shape == (1, 64, 128)
    assert features.pooled.shape == (1, 128)


def test_tokens_lie_in_reading_order() -> None:
    torch.random.manual_seed(0)
    encoder = build_image_encoder(TINY_CONV)
    grey = torch.full((1, 3, 32, 32), 0.5)
    spot = grey.clone()
    spot[..., 4:8, 20:30] = 1.0  # top right, of 2x2 tokens
    change = (encoder.features(spot).tokens - encoder.features(grey).tokens).abs().sum(-1)[0]
    assert change.argmax() == 1


def test_a_batch_sees_what_single_pictures_see() -> None:
    encoder, images = build_image_encoder(TINY_CONV), pictures(3)
    together = encoder.features(images)
    for index in range(3):
        alone = encoder.features(images[index : index + 1])
        torch.testing.assert_close(together.tokens[index], alone.tokens[0])
        torch.testing.assert_close(together.pooled[index], alone.pooled[0])


def test_other_sizes_are_resized() -> None:
    encoder = build_image_encoder(TINY_CONV)
    flat, large = torch.full((1, 3, 32, 32), 0.25), torch.full((1, 3, 50, 70), 0.25)
    torch.testing.assert_close(encoder.features(large).tokens, encoder.features(flat).tokens)


def test_half_precision_resizes_too() -> None:
    encoder, large = build_image_encoder(TINY_CONV), pictures(1, 50)
    expected = encoder.features(large).tokens
    half = encoder.bfloat16().features(large.bfloat16()).tokens
    torch.testing.assert_close(half.float(), expected, rtol=0.1, atol=0.1)  # bfloat16 keeps three digits


def test_a_regression_head_trains_the_encoder_and_is_no_part_of_it() -> None:
    torch.random.manual_seed(0)
    encoder = ConvImageEncoder(**{name: value for name, value in TINY_CONV.items() if name != "kind"})
    names = set(encoder.state_dict())
    head, images, traits = RegressionHead(encoder, 5), pictures(6), torch.randn(6, 5)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        loss = (head(images) - traits).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in head.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert set(encoder.state_dict()) == names


@pytest.mark.parametrize("model_type", sorted(TINY_VITS))
def test_vision_transformers_are_built_from_their_configuration(model_type: str) -> None:
    pytest.importorskip("transformers")
    torch.random.manual_seed(0)
    encoder = VitImageEncoder(model_type, TINY_VITS[model_type]).train(False)
    images = pictures(2, 16)
    features = encoder.features(images)
    assert features.tokens.shape == (2, 5, 12)  # the class token and 2x2 patches
    assert torch.equal(features.pooled, features.tokens[:, 0])
    mean, std = (torch.tensor(constant)[:, None, None] for constant in (encoder.mean, encoder.std))
    reference = encoder.model(pixel_values=(images - mean) / std).last_hidden_state
    torch.testing.assert_close(features.tokens, reference)


def test_an_unknown_encoder_or_setting_is_refused() -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ConfigError, match="unknown kind of image encoder 'resnet'; known: conv, vit"):
        build_image_encoder({"kind": "resnet"})
    with pytest.raises(ConfigError, match="'conv' has no setting 'depth'"):
        build_image_encoder({"kind": "conv", "depth": 3})
    with pytest.raises(ConfigError, match=r"unknown type of vision transformer 'no_such_model'; known: clip_vision"):
        build_image_encoder({"kind": "vit", "model_type": "no_such_model"})
    with pytest.raises(ConfigError, match=r"channels must be whole numbers in 1\.\.8192, got .*-8"):
        build_image_encoder({"kind": "conv", "channels": [8, 8, 8, -8]})
    with pytest.raises(ConfigError, match="multiples of 16 px"):
        build_image_encoder({"kind": "conv", "image_size": 40})


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation", "auto_map", "quantization_config"])
def test_settings_that_could_fetch_code_are_refused(name: str) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ConfigError, match=f"setting '{name}' of a vision transformer must be a number"):
        VitImageEncoder("dinov2", {**TINY_VITS["dinov2"], name: "someone/kernels"})


def test_combining_is_the_weighted_mean() -> None:
    features = ImageFeatures(torch.randn(3, 4, 6), torch.randn(3, 6))
    mean = combine(features)
    torch.testing.assert_close(mean.tokens, features.tokens.mean(0, keepdim=True))
    weighted = combine(features, torch.tensor([0.0, 1.0, 3.0]))
    torch.testing.assert_close(weighted.pooled, 0.25 * features.pooled[1:2] + 0.75 * features.pooled[2:3])
    single = combine(ImageFeatures(features.tokens[:1], features.pooled[:1]))
    assert torch.equal(single.tokens, features.tokens[:1])


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, -1.0, 1.0], [0.0, 0.0, 0.0], [float("nan"), 1.0, 1.0]])
def test_weights_that_make_no_mean_are_refused(weights: list[float]) -> None:
    features = ImageFeatures(torch.randn(3, 4, 6), torch.randn(3, 6))
    with pytest.raises(ConfigError, match="3 references need 3 weights"):
        combine(features, torch.tensor(weights))
