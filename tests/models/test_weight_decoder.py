from __future__ import annotations

import pytest
import torch

from hyperdream_core.errors import ConfigError
from hyperdream_core.models.image_encoder import ImageFeatures
from hyperdream_core.models.weight_decoder import CodeShape, GroupedLinear, WeightDecoder

SHAPES = [CodeShape(3, 5, 2)] * 2 + [CodeShape(3, 7, 2)] * 3
"""Codes of 16 and 20 numbers."""


def features(batch: int, seed: int = 0) -> ImageFeatures:
    generator = torch.Generator().manual_seed(seed)
    return ImageFeatures(torch.randn(batch, 4, 6, generator=generator), torch.randn(batch, 6, generator=generator))


def decoder(**settings: object) -> WeightDecoder:
    torch.random.manual_seed(0)
    return WeightDecoder(SHAPES, 6, width=8, heads=2, **settings)  # type: ignore[arg-type]


def test_a_code_holds_down_before_up() -> None:
    down, up = CodeShape(3, 5, 2).split(torch.arange(16.0))
    assert torch.equal(down, torch.tensor([[0.0, 1, 2], [3, 4, 5]]))
    assert torch.equal(up, torch.tensor([[6.0, 7], [8, 9], [10, 11], [12, 13], [14, 15]]))


def test_a_grouped_linear_is_one_matrix_per_layer() -> None:
    torch.random.manual_seed(0)
    own, shared, x = GroupedLinear(3, 4, 5, 1.0, False), GroupedLinear(3, 4, 5, 1.0, True), torch.randn(2, 3, 4)
    for layer in range(3):
        torch.testing.assert_close(own(x)[:, layer], x[:, layer] @ own.weight[layer])
        torch.testing.assert_close(shared(x)[:, layer], x[:, layer] @ shared.weight[0])


@pytest.mark.parametrize("heads_per", ["layer", "shape"])
@pytest.mark.parametrize("feedback", [True, False])
def test_gradients_reach_every_parameter(heads_per: str, feedback: bool) -> None:
    network = decoder(heads_per=heads_per, feedback=feedback)
    codes = network(features(2), refine_steps=2)
    torch.stack([code.sin().sum() for code in codes]).sum().backward()
    silent = {
        name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()
    }
    assert silent == set()


@pytest.mark.parametrize("feedback", [True, False])
def test_every_pass_adds_to_the_one_before(feedback: bool) -> None:
    network = decoder(feedback=feedback)
    one, two = network(features(2), 1), network(features(2), 2)
    assert [code.shape for code in one] == [(2, 2, 16), (2, 3, 20)]
    for group, (first, second) in enumerate(zip(one, two, strict=True)):
        change = second - first
        assert change.abs().max() > 0
        # The heads are the same, so what a pass adds lies in the span of the layer's head.
        weight = network.heads[group].weight
        for layer in range(weight.shape[0]):
            solution = torch.linalg.lstsq(weight[layer].T, change[:, layer].T).solution
            torch.testing.assert_close(weight[layer].T @ solution, change[:, layer].T, rtol=1e-3, atol=1e-6)


def test_feedback_shows_a_pass_the_codes_so_far() -> None:
    network = decoder()
    with torch.no_grad():
        for project in network.feedback:
            project.weight.zero_()
    one, two = network(features(2), 1), network(features(2), 2)
    for first, second in zip(one, two, strict=True):
        torch.testing.assert_close(second, 2 * first)  # blind, the second pass repeats the first


def test_the_pooled_feature_is_in_every_token() -> None:
    network, seen = decoder(), features(2)
    other = ImageFeatures(seen.tokens, seen.pooled.flip(0))
    for code, changed in zip(network(seen, 1), network(other, 1), strict=True):
        assert ((code - changed).abs().amax(dim=-1) > 0).all()


def test_layers_of_a_shape_share_a_head_if_asked() -> None:
    own, shared = decoder(heads_per="layer"), decoder(heads_per="shape")
    assert [head.weight.shape[0] for head in own.heads] == [2, 3]
    assert [head.weight.shape[0] for head in shared.heads] == [1, 1]
    codes = shared(features(1), 1)[0][0]
    assert (codes[0] - codes[1]).abs().max() > 0  # the tokens still tell the layers apart


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="heads_per must be one of layer, shape"):
        decoder(heads_per="all")
