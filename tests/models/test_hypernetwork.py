from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyperdream_core.bases import get_base
from hyperdream_core.config import config_from_json, config_to_json, field_help
from hyperdream_core.errors import ConfigError
from hyperdream_core.models.hypernetwork import Hypernetwork, HypernetworkConfig, weight_supervision
from hyperdream_core.models.image_encoder import combine
from hyperdream_core.ops.lidb import LidbCoefficients, basis_sizes, canonicalize

TINY: dict[str, object] = {
    "rank": 2, "down_dim": 5, "up_dim": 7, "width": 12, "heads": 3, "decoder_layers": 1,
    "image_encoder": {"kind": "conv", "channels": [8, 8, 8, 8], "blocks": [1, 1, 1], "width": 6,
                      "image_size": 32},
}  # fmt: skip


def tiny(family: str = "miniature", **changes: object) -> Hypernetwork:
    torch.random.manual_seed(0)
    return Hypernetwork(HypernetworkConfig(family=family, **{**TINY, **changes}))  # type: ignore[arg-type]


def pictures(count: int) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("family", ["miniature", "sd15", "sdxl"])
@pytest.mark.parametrize("heads_per", ["layer", "shape"])
def test_every_layer_of_the_base_gets_coefficients_of_its_size(family: str, heads_per: str) -> None:
    network = tiny(family, heads_per=heads_per, target_set="attention+geglu+text", down_dim=50, up_dim=100)
    coefficients = network(pictures(1), refine_steps=1)
    layers = get_base(family).layers("attention+geglu+text")
    assert list(coefficients) == [layer.name for layer in layers]
    for layer in layers:
        p, a = basis_sizes(layer.in_features, layer.out_features)
        assert coefficients[layer.name].down.shape == (1, 2, p)
        assert coefficients[layer.name].up.shape == (1, a, 2)


def test_a_batch_predicts_what_single_pictures_do() -> None:
    network, images = tiny(), pictures(3)
    together = network(images)
    for index in range(3):
        alone = network(images[index : index + 1])
        for name, layer in together.items():
            torch.testing.assert_close(layer.down[index], alone[name].down[0])
            torch.testing.assert_close(layer.up[index], alone[name].up[0])


def test_pictures_and_their_features_predict_the_same() -> None:
    network = tiny()
    from_pictures, from_features = network(pictures(2)), network(network.encode(pictures(2)))
    assert all(torch.equal(from_pictures[name].up, from_features[name].up) for name in network.layer_names)


def test_refining_changes_the_prediction_and_four_passes_are_usual() -> None:
    network = tiny()
    features = network.encode(pictures(1))
    by_passes = {steps: network(features, refine_steps=steps) for steps in (None, 1, 4)}
    name = network.layer_names[5]
    assert torch.equal(by_passes[None][name].up, by_passes[4][name].up)
    assert not torch.equal(by_passes[1][name].up, by_passes[4][name].up)


def test_an_output_of_zero_is_an_identity_without_effect_that_can_learn() -> None:
    network = tiny()
    start = network.start()
    for name in network.layer_names:
        assert not start[name].up.any()
        assert 0.3 < float(start[name].down.norm(dim=-1).mean()) < 3
    with torch.no_grad():
        for head in network.decoder.heads:
            head.weight.zero_()
    predicted = network(pictures(1))
    name = network.layer_names[0]
    assert torch.equal(predicted[name].down, start[name].down)
    (predicted[name].up @ predicted[name].down).sum().backward()
    assert any(head.weight.grad is not None and head.weight.grad.any() for head in network.decoder.heads)


def test_the_start_is_the_same_in_every_network() -> None:
    one = tiny().start()
    torch.random.manual_seed(99)
    other = Hypernetwork(HypernetworkConfig(family="miniature", **TINY)).start()  # type: ignore[arg-type]
    for name, layer in one.items():
        assert torch.equal(layer.down, other[name].down)


def test_gradients_reach_every_trainable_parameter_and_none_of_the_encoder() -> None:
    network = tiny()
    coefficients = network(pictures(2), refine_steps=2)
    torch.stack([layer.up.sin().sum() + layer.down.sin().sum() for layer in coefficients.values()]).sum().backward()
    trained = list(network.parameters_to_train())
    assert len(trained) == len(list(network.decoder.parameters()))
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in trained)
    assert all(parameter.grad is None for parameter in network.encoder.parameters())


def test_the_encoder_trains_along_if_asked() -> None:
    network = tiny(freeze_image_encoder=False)
    coefficients = network(pictures(2), refine_steps=1)
    torch.stack([layer.up.sum() for layer in coefficients.values()]).sum().backward()
    assert len(list(network.parameters_to_train())) == len(list(network.parameters()))
    assert all(parameter.grad is not None for parameter in network.encoder.parameters())


def test_training_mode_leaves_a_frozen_encoder_alone() -> None:
    network = tiny().train()
    assert network.decoder.training
    assert not network.encoder.training


def test_the_penalty_is_the_mean_square_of_the_change() -> None:
    network = tiny()
    assert network.output_penalty(network.start()) == 0
    coefficients, start = network(pictures(2)), network.start(2)
    changes = [torch.cat([(coefficients[name].down - start[name].down).flatten(), coefficients[name].up.flatten()])
               for name in network.layer_names]  # fmt: skip
    torch.testing.assert_close(network.output_penalty(coefficients), torch.cat(changes).square().mean())


def test_weight_supervision_sees_changes_and_not_their_factors() -> None:
    network = tiny()
    with torch.no_grad():
        predicted = network(pictures(2))
    same = {name: canonicalize(layer) for name, layer in predicted.items()}
    assert float(weight_supervision(predicted, same)) < 1e-12
    moved = {name: LidbCoefficients(layer.down, layer.up + 0.1) for name, layer in predicted.items()}
    by_hand = [
        ((0.1 * torch.ones_like(layer.up)) @ layer.down).square().sum(dim=(-2, -1)).mean()
        for layer in predicted.values()
    ]
    torch.testing.assert_close(weight_supervision(predicted, moved), torch.stack(by_hand).mean())


def test_weight_supervision_refuses_an_identity_of_other_layers() -> None:
    predicted = tiny().start()
    first = next(iter(predicted))
    fewer = {name: layer for name, layer in predicted.items() if name != first}
    with pytest.raises(ConfigError, match=f"differ in 1 layers, first '{first}'"):
        weight_supervision(predicted, fewer)


def test_several_references_of_one_person_give_one_prediction() -> None:
    network = tiny()
    features = network.encode(pictures(3))
    one = network(combine(features, torch.tensor([0.0, 1.0, 0.0])))
    alone = network(pictures(3)[1:2])
    name = network.layer_names[-1]
    torch.testing.assert_close(one[name].up, alone[name].up)


def test_a_prediction_can_be_fitted() -> None:
    network = tiny(down_dim=3, up_dim=4, rank=1, refine_steps=2)
    features = network.encode(pictures(3))
    generator = torch.Generator().manual_seed(1)
    targets = {name: LidbCoefficients(layer.down, layer.up + 0.3 * torch.randn(layer.up.shape, generator=generator))
               for name, layer in network.start(3).items()}  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters_to_train(), lr=0.01)
    losses = []
    for _ in range(25):
        loss = weight_supervision(network(features), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_a_vision_transformer_encodes_for_sd15() -> None:
    pytest.importorskip("transformers")
    vit = {"kind": "vit", "model_type": "clip_vision_model",
           "model": {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                     "image_size": 16, "patch_size": 8}}  # fmt: skip
    network = tiny("sd15", image_encoder=vit)
    layer = network(pictures(2), refine_steps=1)["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"]
    assert (layer.up[0] - layer.up[1]).abs().max() > 0


def test_the_configuration_survives_json_and_explains_itself() -> None:
    config = tiny().config
    assert config_from_json(HypernetworkConfig, config_to_json(config)) == config
    assert set(field_help(HypernetworkConfig)) == set(config_to_json(config))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rank": 0}, "rank must be 1 or more"),
        ({"rank": 1000}, "rank must be 128 or less"),
        ({"refine_steps": 0}, "refine_steps must"),
        ({"refine_steps": 10**9}, "refine_steps must"),
        ({"family": "sd9"}, "sd9"),
        ({"width": 10}, "multiple of heads"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny(**change)  # type: ignore[arg-type]
    if "refine_steps" in change:
        with pytest.raises(ConfigError, match=words):
            tiny()(pictures(1), refine_steps=0)
