"""Quantised layers against the same layers with the weight that their codes stand for."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hyperdream_core.errors import BaseMismatchError, ConfigError
from hyperdream_core.models.adapted_linear import live, merged
from hyperdream_core.models.quantized_linear import QuantizedConv2d, QuantizedLayer, QuantizedLinear, quantized_layer
from hyperdream_core.ops.lowrank import LoraPair
from hyperdream_core.ops.quantize import dequantize

KINDS = ("int8", "int4", "nf4")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear() -> nn.Linear:
    torch.random.manual_seed(0)
    return nn.Linear(70, 7)


def convolution() -> nn.Conv2d:
    torch.random.manual_seed(0)
    return nn.Conv2d(6, 5, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2))


LAYERS = {"linear": (linear, (3, 4, 70)), "convolution": (convolution, (3, 6, 9, 8))}


def both(make: Callable[[], nn.Module], kind: str) -> tuple[QuantizedLayer, nn.Module]:
    """A quantised layer, and a plain one with the weight that its codes stand for."""
    layer = make()
    quantized = quantized_layer(layer, kind, 16)
    plain = copy.deepcopy(layer)
    with torch.no_grad():
        plain.weight.copy_(dequantize(quantized.quantized))
    return quantized, plain.requires_grad_(True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", LAYERS)
def test_a_quantised_layer_is_the_plain_one_with_the_weight_of_its_codes(kind: str, which: str) -> None:
    make, shape = LAYERS[which]
    quantized, plain = both(make, kind)
    x = draw(*shape)
    assert torch.equal(quantized(x), plain(x))
    assert not torch.equal(quantized(x), make()(x))
    half = x.bfloat16()
    wanted = plain.bfloat16()(half)
    assert torch.equal(quantized(half), wanted) and wanted.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", LAYERS)
def test_gradients_of_input_and_bias_are_those_of_the_plain_layer(kind: str, which: str) -> None:
    make, shape = LAYERS[which]
    quantized, plain = both(make, kind)
    gradients = []
    for layer in (quantized, plain):
        x = draw(*shape).requires_grad_()
        y = layer(x)
        (y * draw(*y.shape, seed=1)).sum().backward()
        gradients.append((x.grad, layer.bias.grad))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", LAYERS)
def test_scales_get_their_gradient_where_they_ask_for_it(kind: str, which: str) -> None:
    """Against autograd through the formula, every tensor of it in the open, in float64."""
    make, shape = LAYERS[which]
    quantized, plain = both(make, kind)
    quantized.scale_in = draw(shape[2] if which == "linear" else shape[1], seed=2) + 2
    x = draw(*shape).requires_grad_()
    for scale in (quantized.scale_out, quantized.scale_in):
        scale.requires_grad_()
    y = quantized(x)
    seed = draw(*y.shape, seed=1)
    (y * seed).sum().backward()

    row, column = (scale.detach().double().requires_grad_() for scale in (quantized.scale_out, quantized.scale_in))
    inner = [1] * (plain.weight.dim() - 2)
    units = plain.weight.detach().double() / quantized.scale_out.detach().double().view(-1, 1, *inner)
    weight = row.view(-1, 1, *inner) * units * column.view(1, -1, *inner)
    wide = x.detach().double().requires_grad_()
    bias = plain.bias.detach().double()
    geometry = () if which == "linear" else (plain.stride, plain.padding, plain.dilation)
    product = nn.functional.linear if which == "linear" else nn.functional.conv2d
    wanted = product(wide, weight, bias, *geometry)
    (wanted * seed).sum().backward()
    torch.testing.assert_close(y.double(), wanted, rtol=1e-4, atol=1e-4)
    for ours, theirs in ((quantized.scale_out, row), (quantized.scale_in, column), (x, wide)):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", LAYERS)
def test_nothing_but_the_packed_weight_is_kept_for_the_gradient(which: str) -> None:
    make, shape = LAYERS[which]
    layer = quantized_layer(make().requires_grad_(False), "int4", 16)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x = draw(*shape).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    own = {tensor.data_ptr() for tensor in layer.buffers()}
    assert kept and {tensor.data_ptr() for tensor in kept} <= own
    assert max(tensor.numel() for tensor in kept if tensor.is_floating_point()) < layer.codes.numel()


def test_casting_a_network_leaves_scales_in_float32() -> None:
    layer = quantized_layer(linear(), "int4", 16)
    before = {name: tensor.clone() for name, tensor in layer.named_buffers()}
    for cast in (nn.Module.half, nn.Module.bfloat16, nn.Module.double):
        cast(layer)
        for name, tensor in layer.named_buffers():
            assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name])
    assert layer.bias.dtype == torch.float64
    assert layer(draw(2, 70)).dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", LAYERS)
def test_state_is_saved_and_loaded_bit_for_bit(kind: str, which: str) -> None:
    make, shape = LAYERS[which]
    saved, other = quantized_layer(make(), kind, 16), make()
    with torch.no_grad():
        other.weight.copy_(draw(*other.weight.shape, seed=3))
    loaded = quantized_layer(other, kind, 16)
    saved.scale_in = draw(shape[2] if which == "linear" else shape[1], seed=2)
    assert not torch.equal(loaded(draw(*shape)), saved(draw(*shape)))
    loaded.load_state_dict(saved.state_dict())
    assert torch.equal(loaded(draw(*shape)), saved(draw(*shape)))
    twin = copy.deepcopy(saved)
    assert torch.equal(twin(draw(*shape)), saved(draw(*shape)))


def test_the_state_of_another_kind_is_refused() -> None:
    layer = quantized_layer(linear(), "int4", 16)
    with pytest.raises(RuntimeError, match="zero_point"):
        layer.load_state_dict(quantized_layer(linear(), "nf4", 16).state_dict())
    with pytest.raises(RuntimeError, match="size mismatch for codes"):
        layer.load_state_dict(quantized_layer(linear(), "int8", 16).state_dict())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", LAYERS)
def test_low_rank_pairs_act_live_on_quantised_layers(kind: str, which: str) -> None:
    make, shape = LAYERS[which]
    quantized, plain = both(make, kind)
    nets = [nn.ModuleDict({"a": layer}).requires_grad_(False) for layer in (quantized, plain)]
    inputs = plain.weight[0].numel()
    pair = LoraPair(draw(3, inputs, seed=1), draw(plain.weight.shape[0], 3, seed=2))
    results = []
    for net in nets:
        factors = LoraPair(pair.down.clone().requires_grad_(), pair.up.clone().requires_grad_())
        x = draw(*shape).requires_grad_()
        with live(net, {"a": factors}, torch.tensor([0.7, 0.0, -0.3])):
            y = net["a"](x)
            (y * draw(*y.shape, seed=4)).sum().backward()
        assert torch.equal(y[1], net["a"](x)[1])
        results.append((y, x.grad, factors.down.grad, factors.up.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_each_sample_may_have_its_own_pair_on_a_quantised_layer() -> None:
    net = nn.ModuleDict({"a": quantized_layer(linear(), "nf4", 16)})
    pairs = LoraPair(draw(2, 3, 70, seed=1), draw(2, 7, 3, seed=2))
    x = draw(4, 5, 70)
    with live(net, {"a": pairs}, samples_each=2):
        together = net["a"](x)
    for sample in range(4):
        one = LoraPair(pairs.down[sample // 2], pairs.up[sample // 2])
        with live(net, {"a": one}):
            torch.testing.assert_close(together[sample], net["a"](x[sample]), rtol=1e-5, atol=1e-5)


def test_a_low_rank_pair_is_not_merged_into_integers() -> None:
    net = nn.ModuleDict({"a": quantized_layer(linear(), "int8")})
    with (
        pytest.raises(BaseMismatchError, match="'a' is a QuantizedLinear without a floating-point weight"),
        merged(net, {"a": LoraPair(draw(1, 70), draw(7, 1))}),
    ):
        pass


def test_pairs_of_other_sizes_are_refused() -> None:
    net = nn.ModuleDict({"a": quantized_layer(linear(), "int8"), "c": quantized_layer(convolution(), "int8")})
    for name, wanted in (("a", r"\(\.\.\., r, 70\)"), ("c", r"\(\.\.\., r, 36\)")):
        with pytest.raises(BaseMismatchError, match=wanted), live(net, {name: LoraPair(draw(1, 8), draw(7, 1))}):
            pass


def test_convolutions_of_a_kind_that_is_not_dequantised_are_refused() -> None:
    for wrong in (
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    ):
        with pytest.raises(ConfigError, match="cannot be quantised, expected 1 group and so many px of zeros"):
            quantized_layer(wrong, "int8")


def test_layers_say_what_they_are() -> None:
    assert "QuantizedLinear(70, 7, int4, group=16)" in repr(quantized_layer(linear(), "int4", 16))
    assert "QuantizedConv2d(6, 5, kernel=(3, 2), nf4, group=36)" in repr(quantized_layer(convolution(), "nf4"))
    assert isinstance(quantized_layer(linear(), "int8"), QuantizedLinear)
    assert isinstance(quantized_layer(convolution(), "int8"), QuantizedConv2d)
