"""The table of kinds, proven by a second toy kind: a scale for each output, added to the weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from hyperdream_core.errors import BaseMismatchError, ConfigError
from hyperdream_core.models.adapted_linear import KINDS, live, merge_, merged, size_in_bytes
from hyperdream_core.ops.changes import LayerChange
from hyperdream_core.ops.lowrank import LoraPair


@dataclass(frozen=True, eq=False)
class OutputScale:
    """W + strength * diag(scale) W."""

    scale: Tensor
    """(o,)"""
    samples: int | None = None

    def to(self, device: torch.device) -> OutputScale:
        return OutputScale(self.scale.to(device))


class OutputScales:
    def check(self, name: str, layer: nn.Module, change: OutputScale) -> None:
        if change.scale.shape != (layer.out_features,):
            raise BaseMismatchError(f"layer {name!r} has {layer.out_features} outputs, not {len(change.scale)}")

    def forward(
        self, name: str, layer: nn.Linear, change: OutputScale, strength: float | Tensor, samples_each: int
    ) -> Callable[[Tensor], Tensor]:
        before = layer.forward
        factor = strength
        if isinstance(strength, Tensor) and strength.dim():
            factor = strength.repeat_interleave(samples_each)[:, None, None]
        return lambda x: before(x) + factor * change.scale * nn.functional.linear(x, layer.weight)

    def merged(self, weight: Tensor, change: OutputScale, strength: float) -> Tensor:
        return weight * (1 + strength * change.scale[:, None])

    def size(self, change: OutputScale) -> int:
        return change.scale.nbytes


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, OutputScale, OutputScales())


@pytest.fixture
def net() -> nn.Sequential:
    torch.random.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4, bias=False)).requires_grad_(False)


@pytest.fixture
def changes() -> dict[str, LayerChange]:
    """A scale on the first layer, a pair on the last."""
    return {"0": OutputScale(draw(7)), "2": LoraPair(draw(2, 7, seed=1), draw(4, 2, seed=2))}


@pytest.fixture
def x() -> Tensor:
    return draw(3, 6, 5, seed=3)


def by_hand(net: nn.Sequential, x: Tensor, changes: dict[str, LayerChange], strength: float) -> Tensor:
    scale, pair = changes["0"].scale, changes["2"]
    first = net[0].weight * (1 + strength * scale[:, None])
    return torch.tanh(x @ first.T + net[0].bias) @ (net[2].weight + strength * pair.up @ pair.down).T


def test_kinds_mix_in_one_adapter_live_merged_and_for_good(
    net: nn.Sequential, x: Tensor, changes: dict[str, LayerChange]
) -> None:
    before, wanted = net(x), by_hand(net, x, changes, 0.6)
    for context in (live, merged):
        with context(net, changes, 0.6):
            torch.testing.assert_close(net(x), wanted)
        assert torch.equal(net(x), before)
    merge_(net, changes, 0.6)
    torch.testing.assert_close(net(x), wanted)


@pytest.mark.parametrize("is_scale_first", [True, False])
def test_two_kinds_on_one_layer_add_up_in_either_order(net: nn.Sequential, x: Tensor, is_scale_first: bool) -> None:
    scale, pair = {"0": OutputScale(draw(7))}, {"0": LoraPair(draw(2, 5, seed=1), draw(7, 2, seed=2))}
    weight = net[0].weight * (1 + 0.5 * scale["0"].scale[:, None]) + pair["0"].up @ pair["0"].down
    wanted = net[2](torch.tanh(x @ weight.T + net[0].bias))
    outer, inner = ((scale, 0.5), (pair, 1.0)) if is_scale_first else ((pair, 1.0), (scale, 0.5))
    with live(net, *outer), live(net, *inner):
        torch.testing.assert_close(net(x), wanted)


def test_every_kind_takes_a_strength_for_each_sample(
    net: nn.Sequential, x: Tensor, changes: dict[str, LayerChange]
) -> None:
    strengths = [0.0, 1.0, -0.5]
    with live(net, changes, torch.tensor(strengths)):
        together = net(x)
    for row, strength in enumerate(strengths):
        torch.testing.assert_close(together[row], by_hand(net, x[row], changes, strength))


def test_the_bytes_of_an_adapter_are_those_of_all_its_tensors(changes: dict[str, LayerChange]) -> None:
    assert size_in_bytes(changes) == 4 * (7 + 2 * 7 + 4 * 2)


def test_each_kind_checks_its_own_layers(net: nn.Sequential) -> None:
    with pytest.raises(BaseMismatchError, match="has 7 outputs, not 6"), live(net, {"0": OutputScale(draw(6))}):
        pass


def test_a_kind_that_is_not_in_the_table_is_refused_by_name(
    net: nn.Sequential, changes: dict[str, LayerChange], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(KINDS, OutputScale)
    for context in (live, merged):
        with (
            pytest.raises(
                ConfigError, match=r"'0' has a change of the type OutputScale, but LoraPair, .*ScaleChange are known"
            ),
            context(net, changes),
        ):
            pass


def test_the_worked_example_of_the_low_rank_kinds_opening() -> None:
    net = nn.ModuleDict({"w": nn.Linear(3, 2, bias=False)}).requires_grad_(False)
    net["w"].weight.copy_(torch.eye(2, 3))
    with live(net, {"w": LoraPair(torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[2.0], [0.0]]))}, 0.5):
        assert net["w"](torch.tensor([1.0, 2.0, 3.0])).tolist() == [4.0, 2.0]


@pytest.mark.parametrize("stride", [1, 2])
def test_a_pair_on_a_convolution_is_one_on_its_patches(stride: int) -> None:
    torch.random.manual_seed(0)
    net = nn.ModuleDict({"c": nn.Conv2d(3, 5, (3, 2), stride, padding=1)}).requires_grad_(False)
    x, pair = draw(2, 3, 8, 9), LoraPair(draw(2, 3 * 3 * 2, seed=1), draw(5, 2, seed=2))
    weight = net["c"].weight + 0.7 * (pair.up @ pair.down).reshape(5, 3, 3, 2)
    wanted = nn.functional.conv2d(x, weight, net["c"].bias, stride, padding=1)
    for context in (live, merged):
        with context(net, {"c": pair}, 0.7):
            torch.testing.assert_close(net["c"](x), wanted)
    with live(net, {"c": pair}, torch.tensor([0.7, 0.0])):
        each = net["c"](x)
    torch.testing.assert_close(each[0], wanted[0])
    assert torch.equal(each[1], net["c"](x)[1])


def test_a_convolution_refuses_other_sizes_batches_and_a_pair_per_sample() -> None:
    net, x = nn.ModuleDict({"c": nn.Conv2d(3, 5, 3)}), draw(4, 3, 8, 8)
    pair = LoraPair(draw(2, 27), draw(5, 2))
    with pytest.raises(BaseMismatchError, match=r"needs \(\.\.\., r, 27\) and \(\.\.\., 5, r\)"):
        live(net, {"c": LoraPair(draw(2, 3), draw(5, 2))}).__enter__()
    with live(net, {"c": pair}, torch.ones(2)), pytest.raises(ConfigError, match="for 2 samples"):
        net["c"](x)
    with live(net, {"c": pair}, torch.ones(2), samples_each=2):
        assert not torch.equal(net["c"](x), nn.Conv2d.forward(net["c"], x))
    with pytest.raises(ConfigError, match="is a convolution and has per-sample factors"):
        live(net, {"c": LoraPair(draw(2, 2, 27), draw(2, 5, 2))}).__enter__()
