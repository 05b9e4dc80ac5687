"""Changed scales against dense arithmetic: W' = (s_out + ds_out) (W_q - z) (s_in + ds_in)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hyperdream_core.errors import BaseMismatchError, ConfigError
from hyperdream_core.models.adapted_linear import live, merge_, merged, size_in_bytes
from hyperdream_core.models.quantized_linear import QuantizedLayer, quantized_layer
from hyperdream_core.ops.lowrank import LoraPair
from hyperdream_core.ops.quantize import dequantize
from hyperdream_core.ops.scales import ScaleChange

KINDS = ("int8", "int4", "nf4", None)
"""of the base; None is full precision"""
SHAPES = {"linear": (3, 4, 10), "linear without bias": (3, 10), "convolution": (3, 6, 7, 5)}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_net(which: str, kind: str | None) -> nn.ModuleDict:
    torch.random.manual_seed(0)
    plain: nn.Module = nn.Conv2d(6, 5, 3, stride=2, padding=1)
    if which != "convolution":
        plain = nn.Linear(10, 5, bias=which == "linear")
    layer = plain if kind is None else quantized_layer(plain, kind, 4)
    return nn.ModuleDict({"a": layer}).requires_grad_(False)


def change_of(which: str, sides: str, samples: tuple[int, ...] = ()) -> ScaleChange:
    out, into = draw(*samples, 5, seed=1) * 0.3, draw(*samples, 6 if which == "convolution" else 10, seed=2) * 0.3
    return ScaleChange(out, into if sides == "both" else None)


def by_formula(layer: nn.Module, x: Tensor, change: ScaleChange, strength: float) -> Tensor:
    """(s_out + ds_out) (W_q - z) (s_in + ds_in), dense and in float64; of a plain layer s_out is 1 and W_q - z is W."""
    shape = layer.shape if isinstance(layer, QuantizedLayer) else tuple(layer.weight.shape)
    inner = [1] * (len(shape) - 2)
    if isinstance(layer, QuantizedLayer):
        s_out = layer.scale_out.double()
        units = dequantize(layer.quantized).double() / s_out.view(-1, 1, *inner)
    else:
        s_out, units = torch.ones(shape[0], dtype=torch.float64), layer.weight.double()
    s_in = torch.ones(shape[1], dtype=torch.float64)
    ds_out = strength * change.scale_out.double() * s_out
    ds_in = torch.zeros_like(s_in) if change.scale_in is None else strength * change.scale_in.double() * s_in
    weight = (s_out + ds_out).view(-1, 1, *inner) * units * (s_in + ds_in).view(1, -1, *inner)
    bias = None if layer.bias is None else layer.bias.double()
    if inner:
        return nn.functional.conv2d(x.double(), weight, bias, layer.stride, layer.padding)
    return nn.functional.linear(x.double(), weight, bias)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", SHAPES)
@pytest.mark.parametrize("sides", ["out", "both"])
def test_live_merged_and_for_good_are_the_formula(kind: str | None, which: str, sides: str) -> None:
    net, x, change = make_net(which, kind), draw(*SHAPES[which], seed=3), change_of(which, sides)
    before, wanted = net["a"](x), by_formula(net["a"], x, change, 0.6)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for context in (live, merged):
        with context(net, {"a": change}, 0.6):
            torch.testing.assert_close(net["a"](x).double(), wanted, rtol=1e-5, atol=1e-5)
        assert torch.equal(net["a"](x), before)
        assert net.state_dict().keys() == state.keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    merge_(net, {"a": change}, 0.6)
    torch.testing.assert_close(net["a"](x).double(), wanted, rtol=1e-5, atol=1e-5)
    if kind is not None:
        assert torch.equal(net["a"].codes, state["a.codes"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", SHAPES)
@pytest.mark.parametrize("sides", ["out", "both"])
def test_each_sample_has_its_own_strength_and_0_is_the_base_bit_for_bit(
    kind: str | None, which: str, sides: str
) -> None:
    net, x, change = make_net(which, kind), draw(*SHAPES[which], seed=3), change_of(which, sides)
    before, strengths = net["a"](x), [0.0, 1.0, -0.5]
    with live(net, {"a": change}, torch.tensor(strengths)):
        together = net["a"](x)
    assert torch.equal(together[0], before[0])
    with live(net, {"a": change}, 0.0):
        assert torch.equal(net["a"](x), before)
    for row, strength in enumerate(strengths):
        wanted = by_formula(net["a"], x[row : row + 1], change, strength)[0]
        torch.testing.assert_close(together[row].double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("which", SHAPES)
@pytest.mark.parametrize("sides", ["out", "both"])
def test_each_sample_may_have_scales_of_its_own(which: str, sides: str) -> None:
    net, x = make_net(which, "int4"), draw(6, *SHAPES[which][1:], seed=3)
    change = change_of(which, sides, (3,))
    assert change.samples == 3
    with live(net, {"a": change}, samples_each=2):
        together = net["a"](x)
    for row in range(6):
        into = None if change.scale_in is None else change.scale_in[row // 2]
        one = ScaleChange(change.scale_out[row // 2], into)
        wanted = by_formula(net["a"], x[row : row + 1], one, 1.0)[0]
        torch.testing.assert_close(together[row].double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["linear", "convolution"])
def test_gradients_of_scales_strength_and_input_are_those_of_the_formula(kind: str | None, which: str) -> None:
    net = make_net(which, kind)
    gradients = []
    for is_dense in (False, True):
        change, x = change_of(which, "both"), draw(*SHAPES[which], seed=3).requires_grad_()
        strength = torch.tensor(0.7, requires_grad=True)
        sides = change.scale_out.requires_grad_(), change.scale_in.requires_grad_()
        if is_dense:
            y = by_formula(net["a"], x, change, strength)
        else:
            with live(net, {"a": change}, strength):
                y = net["a"](x)
        (y * draw(*y.shape, seed=4)).sum().backward()
        gradients.append([tensor.grad for tensor in (*sides, strength, x)])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("is_scale_first", [True, False])
@pytest.mark.parametrize("which", ["linear", "convolution"])
@pytest.mark.parametrize("sides", ["out", "both"])
def test_scales_and_low_rank_pairs_on_one_layer_add_up(is_scale_first: bool, which: str, sides: str) -> None:
    net, x, change = make_net(which, "nf4"), draw(*SHAPES[which], seed=3), change_of(which, sides)
    inputs = 54 if which == "convolution" else 10
    pair = LoraPair(draw(2, inputs, seed=5), draw(5, 2, seed=6))
    before = net["a"](x)
    with live(net, {"a": pair}, 0.5):
        by_pair = net["a"](x) - before
    contexts = [live(net, {"a": change}, torch.tensor([0.0, 1.0, 1.0])), live(net, {"a": pair}, 0.5)]
    first, second = contexts if is_scale_first else contexts[::-1]
    with first, second:
        both = net["a"](x)
    wanted = by_formula(net["a"], x, change, 1.0) + by_pair
    torch.testing.assert_close(both[1:].double(), wanted[1:], rtol=1e-4, atol=1e-4)
    with live(net, {"a": pair}, 0.5):
        torch.testing.assert_close(both[0], net["a"](x)[0], rtol=1e-6, atol=1e-6)


def test_the_worked_example_of_scales() -> None:
    net = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False)}).requires_grad_(False)
    net["a"].weight.copy_(torch.tensor([[2.0, 4.0], [1.0, 1.0]]))
    merge_(net, {"a": ScaleChange(torch.tensor([0.5, 0.0]), torch.tensor([0.0, -0.5]))})
    assert net["a"].weight.tolist() == [[3.0, 3.0], [1.0, 0.5]]


def test_merging_again_multiplies_and_state_with_merged_scales_is_loaded() -> None:
    net, change = make_net("linear", "int4"), change_of("linear", "both")
    fresh, x = make_net("linear", "int4"), draw(3, 10)
    once = dequantize(net["a"].quantized).double()
    for _ in range(2):
        merge_(net, {"a": change})
    factors = (1 + change.scale_out.double())[:, None] ** 2 * (1 + change.scale_in.double()) ** 2
    torch.testing.assert_close(dequantize(net["a"].quantized).double(), once * factors, rtol=1e-5, atol=1e-6)
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh["a"](x), net["a"](x))


def test_an_error_inside_merged_gives_the_scales_back() -> None:
    net = make_net("linear", "int8")
    own = net["a"].scale_out
    with pytest.raises(KeyError), merged(net, {"a": change_of("linear", "both")}):
        assert net["a"].scale_in is not None and net["a"].scale_out is not own
        raise KeyError
    assert net["a"].scale_out is own and net["a"].scale_in is None


def test_bytes_are_those_of_both_sides() -> None:
    changes = {"a": change_of("linear", "both"), "b": change_of("linear", "out")}
    assert size_in_bytes(changes) == 4 * (5 + 10 + 5)


def test_half_precision_layers_take_float32_scales() -> None:
    net, x, change = make_net("linear", None).bfloat16(), draw(3, 10).bfloat16(), change_of("linear", "both")
    with live(net, {"a": change}):
        ours = net["a"](x)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.double(), by_formula(net["a"], x, change, 1.0), rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("which", ["linear", "convolution"])
def test_scales_of_other_sizes_layers_and_batches_are_refused(which: str) -> None:
    net = make_net(which, "int8")
    inputs = 6 if which == "convolution" else 10
    for wrong in (ScaleChange(draw(4)), ScaleChange(draw(5), draw(7)), ScaleChange(draw(5), draw(54))):
        with pytest.raises(BaseMismatchError, match=f"of {inputs} inputs and 5 outputs, but the scales are of"):
            live(net, {"a": wrong}).__enter__()
    with pytest.raises(BaseMismatchError, match="LayerNorm of None inputs and None outputs"):
        live(nn.ModuleDict({"a": nn.LayerNorm(5)}), {"a": ScaleChange(draw(5))}).__enter__()
    with (
        live(net, {"a": ScaleChange(draw(2, 5))}),
        pytest.raises(ConfigError, match="its adapters are for 2 samples"),
    ):
        net["a"](draw(*SHAPES[which]))
    with pytest.raises(ConfigError, match="has changes for 2 samples, but one weight serves all"):
        merged(net, {"a": ScaleChange(draw(2, 5))}).__enter__()
    with pytest.raises(ConfigError, match="has adapters and strengths for"):
        live(net, {"a": ScaleChange(draw(2, 5))}, torch.ones(3)).__enter__()
