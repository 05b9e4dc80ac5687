from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import Tensor, nn

from hyperdream_core.errors import BaseMismatchError, ConfigError
from hyperdream_core.models.adapted_linear import live
from hyperdream_core.models.quantized_linear import QuantizedConv2d, QuantizedLayer, QuantizedLinear
from hyperdream_core.models.quantized_network import integers_digest, is_end, quantize_network_
from hyperdream_core.ops.lowrank import LoraPair


class Host(nn.Linear):
    """A host's layer with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class SmallUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(4, 8, 3, padding=1)
        self.time_embedding = nn.ModuleDict({"linear_1": nn.Linear(6, 8)})
        self.norm = nn.GroupNorm(2, 8)
        self.blocks = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)])
        self.attention = nn.ModuleDict({"to_q": nn.Linear(8, 8, bias=False), "to_out": nn.Sequential(nn.Linear(8, 8))})
        self.host = Host(8, 8)
        self.conv_out = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.conv_in(x) + self.time_embedding["linear_1"](t)[:, :, None, None]
        h = self.norm(self.blocks[1](self.blocks[0](h)))
        tokens = h.flatten(2).mT
        tokens = self.host(self.attention["to_out"](self.attention["to_q"](tokens)))
        return self.conv_out(tokens.mT.unflatten(2, h.shape[2:]))


INNER = {"blocks.0", "blocks.1", "attention.to_q", "attention.to_out.0"}
ENDS = {"conv_in", "time_embedding.linear_1", "conv_out"}


@pytest.fixture
def net() -> SmallUNet:
    torch.random.manual_seed(0)
    return SmallUNet().requires_grad_(False)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_all_but_the_ends_norms_and_host_layers_are_exchanged(net: SmallUNet) -> None:
    plain, kept = copy.deepcopy(net), dict(net.named_modules())
    done = quantize_network_(net, "int4", group=8)
    assert set(done.layers) == INNER and set(done.kept) == {*ENDS, "host"}
    for name, layer in net.named_modules():
        assert isinstance(layer, QuantizedLayer) == (name in INNER)
        if name not in INNER:
            assert layer is kept[name]
    inputs = draw(2, 4, 6, 6), draw(2, 6)
    error = (net(*inputs) - plain(*inputs)).norm() / plain(*inputs).norm()
    assert 0 < error < 0.2
    stored = sum(layer.quantized.size_in_bytes() for layer in net.modules() if isinstance(layer, QuantizedLayer))
    numbers = sum(plain.get_submodule(name).weight.numel() for name in INNER)
    assert (done.bytes_now, done.bytes_before) == (stored, 4 * numbers)
    assert done.bits_per_weight == 8 * stored / numbers


def test_the_ends_take_eight_bits_and_no_fewer(net: SmallUNet) -> None:
    for ends in ("int4", "nf4"):
        with pytest.raises(ConfigError, match=f"{ends} has 4 bits, but the first and last layers .* allow 8 or more"):
            quantize_network_(net, "int4", ends=ends)
    assert not any(isinstance(layer, QuantizedLayer) for layer in net.modules())
    done = quantize_network_(net, "nf4", ends="int8")
    kinds = {name: layer.kind for name, layer in net.named_modules() if isinstance(layer, QuantizedLayer)}
    assert kinds == dict.fromkeys(INNER, "nf4") | dict.fromkeys(ENDS, "int8")
    assert done.kept == ("host",)
    assert isinstance(net.conv_in, QuantizedConv2d) and isinstance(net.time_embedding["linear_1"], QuantizedLinear)


@pytest.mark.parametrize(
    "name",
    ["conv_in", "time_embedding.linear_2", "add_embedding.linear_1", "input_blocks.0.0", "out.2", "time_embed.0",
     "label_emb.0.0"],
)  # fmt: skip
def test_the_ends_are_known_in_both_dialects(name: str) -> None:
    assert is_end(name)
    others = ("down_blocks.0.resnets.0.time_emb_proj", "input_blocks.1.0.in_layers.2", "mid_block.attentions.0.proj_in")
    assert not any(is_end(other) for other in (f"block.{name}", "out.20", *others))


def test_no_more_than_one_weight_is_there_in_both_forms(net: SmallUNet) -> None:
    weights = [weakref.ref(net.get_submodule(name).weight) for name in sorted(INNER)]
    alive = []

    def look(step: int, total: int) -> None:
        alive.append(sum(weight() is not None for weight in weights))
        assert total == 4 and step == len(alive) - 1

    quantize_network_(net, "int8", progress=look)
    assert alive == [4, 3, 2, 1, 0]


def test_a_network_is_quantised_once(net: SmallUNet) -> None:
    quantize_network_(net, "int8")
    with pytest.raises(ConfigError, match="the SmallUNet has no layer to quantise, and 4 that are quantised already"):
        quantize_network_(net, "int4")


def test_a_layer_with_numbers_that_are_not_finite_is_named(net: SmallUNet) -> None:
    net.attention["to_q"].weight[1, 1] = torch.nan
    with pytest.raises(ConfigError, match=r"layer 'attention.to_q': the weight holds 1 of 64 numbers that are not"):
        quantize_network_(net, "int8")


def test_layers_that_adapters_are_live_on_are_left_alone(net: SmallUNet) -> None:
    with live(net, {"attention.to_q": LoraPair(draw(1, 8), draw(8, 1))}):
        done = quantize_network_(net, "int8")
    assert "attention.to_q" in done.kept and type(net.attention["to_q"]) is nn.Linear


def test_weights_and_outputs_are_bit_for_bit_as_before_an_adapter(net: SmallUNet) -> None:
    quantize_network_(net, "int4", group=8)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    inputs = draw(2, 4, 6, 6), draw(2, 6)
    output = net(*inputs)
    pairs = {
        "attention.to_q": LoraPair(draw(2, 8).requires_grad_(), draw(8, 2)),
        "blocks.0": LoraPair(draw(1, 72), draw(8, 1)),
    }
    with live(net, pairs, 0.5):
        changed = net(*inputs)
        changed.sum().backward()
    assert not torch.equal(changed, output) and pairs["attention.to_q"].down.grad.abs().sum() > 0
    assert torch.equal(net(*inputs), output)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_a_network_quantised_in_a_hosts_inference_mode_is_trained_through(net: SmallUNet) -> None:
    with torch.inference_mode():
        loaded = SmallUNet().requires_grad_(False)
        quantize_network_(loaded, "int4", group=8)
    pair = LoraPair(draw(2, 8).requires_grad_(), draw(8, 2).requires_grad_())
    layer = loaded.attention["to_q"]
    with live(loaded, {"attention.to_q": pair}):
        layer(draw(3, 8).requires_grad_()).sum().backward()
    assert pair.up.grad.abs().sum() > 0


def test_the_digest_is_of_the_integers_and_not_of_the_scales(net: SmallUNet) -> None:
    other = copy.deepcopy(net)

    def digest(network: SmallUNet) -> str:
        return integers_digest({name: network.get_submodule(name) for name in INNER})

    with pytest.raises(BaseMismatchError, match=r"is a (Conv2d|Linear) and not quantised"):
        digest(net)
    for network in (net, other):
        quantize_network_(network, "int4", group=8)
    first = digest(net)
    assert first == digest(other) and len(first) == 64
    other.attention["to_q"].scale_out.mul_(1.5)
    assert first == digest(other)
    other.attention["to_q"].codes[0, 0] ^= 1
    assert first != digest(other)
    again = copy.deepcopy(net)
    again.blocks[1].zero_point[0, 0] ^= 1
    assert first != digest(again)
