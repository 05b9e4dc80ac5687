from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hyperdream_core.errors import BaseMismatchError, ConfigError
from hyperdream_core.models.adapted_linear import live, merge_, merged
from hyperdream_core.ops.lowrank import LoraPair


class TwoLayers(nn.Module):
    """5 -> 7 -> 4, the second without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.inner = nn.ModuleDict({"second": nn.Linear(7, 4, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        return self.inner["second"](torch.tanh(self.first(x)))


SIZES = {"first": (5, 7), "inner.second": (7, 4)}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draw_pairs(rank: int = 3, samples: tuple[int, ...] = (), seed: int = 1) -> dict[str, LoraPair]:
    return {
        name: LoraPair(down=draw(*samples, rank, i, seed=seed + i), up=draw(*samples, o, rank, seed=seed + 50 + o))
        for name, (i, o) in SIZES.items()
    }


@pytest.fixture
def base() -> TwoLayers:
    torch.random.manual_seed(0)
    return TwoLayers().requires_grad_(False)


def by_hand(base: TwoLayers, x: Tensor, pairs: dict[str, LoraPair], strength: float) -> Tensor:
    first, second = pairs["first"], pairs["inner.second"]
    w1 = base.first.weight.double() + strength * first.up.double() @ first.down.double()
    w2 = base.inner["second"].weight.double() + strength * second.up.double() @ second.down.double()
    return torch.tanh(x.double() @ w1.T + base.first.bias.double()) @ w2.T


@pytest.mark.parametrize("leading", [(6,), (2, 6), (2, 3, 2)])
def test_live_equals_changed_weights_in_float64(base: TwoLayers, leading: tuple[int, ...]) -> None:
    x, pairs = draw(*leading, 5), draw_pairs()
    with live(base, pairs, 0.7):
        torch.testing.assert_close(base(x).double(), by_hand(base, x, pairs, 0.7), rtol=1e-5, atol=1e-5)


def test_merged_and_live_agree_to_rounding(base: TwoLayers) -> None:
    x, pairs = draw(2, 6, 5), draw_pairs()
    with live(base, pairs, -0.4):
        run_live = base(x)
    with merged(base, pairs, -0.4):
        torch.testing.assert_close(base(x), run_live)


@pytest.mark.parametrize("samples", [(), (2,)])
def test_strength_zero_is_the_base_bit_for_bit(base: TwoLayers, samples: tuple[int, ...]) -> None:
    x, expected = draw(2, 6, 5), base(draw(2, 6, 5))
    for strength in (0.0, torch.zeros(2)):
        with live(base, draw_pairs(samples=samples), strength):
            assert torch.equal(base(x), expected)
    with live(base, {}), merged(base, draw_pairs(), 0.0):
        assert torch.equal(base(x), expected)


def test_per_sample_adapters_equal_one_by_one(base: TwoLayers) -> None:
    x, pairs, strength = draw(3, 6, 5), draw_pairs(samples=(3,)), torch.tensor([1.0, 0.0, -0.5])
    with live(base, pairs, strength):
        together = base(x)
    for index in range(3):
        one = {name: LoraPair(pair.down[index], pair.up[index]) for name, pair in pairs.items()}
        with live(base, one, float(strength[index])):
            torch.testing.assert_close(together[index], base(x[index]))


def test_one_adapter_takes_a_strength_per_sample(base: TwoLayers) -> None:
    x, pairs = draw(3, 6, 5), draw_pairs()
    with live(base, pairs, torch.tensor([0.0, 1.0, 0.3])):
        together = base(x)
    assert torch.equal(together[0], base(x)[0])
    for index, strength in ((1, 1.0), (2, 0.3)):
        with live(base, pairs, strength):
            torch.testing.assert_close(together[index], base(x[index]))


def test_per_sample_adapters_take_inputs_with_and_without_inner_axes(base: TwoLayers) -> None:
    pairs = draw_pairs(samples=(2,))
    with live(base, pairs):
        flat, deep = base(draw(2, 5)), base(draw(2, 5).reshape(2, 1, 1, 5))
    torch.testing.assert_close(deep.reshape(2, 4), flat)


def test_nested_contexts_add_up(base: TwoLayers) -> None:
    x, one, two = draw(6, 5), draw_pairs(rank=1), draw_pairs(rank=3, seed=9)
    both = {name: LoraPair(torch.cat([one[name].down, two[name].down]),
                           torch.cat([0.5 * one[name].up, two[name].up], dim=1)) for name in one}  # fmt: skip
    with live(base, one, 0.5), live(base, two):
        nested = base(x)
    with live(base, both):
        torch.testing.assert_close(nested, base(x))


def test_live_works_on_merged_weights(base: TwoLayers) -> None:
    x, pairs = draw(6, 5), draw_pairs()
    with merged(base, pairs, 0.25), live(base, pairs, 0.5):
        both = base(x)
    with live(base, pairs, 0.75):
        torch.testing.assert_close(both, base(x))


def test_an_exception_restores_the_module(base: TwoLayers) -> None:
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    for context in (live, merged):
        with pytest.raises(KeyboardInterrupt), context(base, draw_pairs()):
            raise KeyboardInterrupt
        assert "forward" not in base.first.__dict__
        assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


def test_merging_in_half_precision_restores_the_same_bits(base: TwoLayers) -> None:
    base.bfloat16()
    before = base.first.weight.clone()
    with merged(base, draw_pairs()):
        assert base.first.weight.dtype == torch.bfloat16
        assert not torch.equal(base.first.weight, before)
    assert torch.equal(base.first.weight, before)


def test_merge_changes_the_same_tensors_for_good(base: TwoLayers) -> None:
    x, pairs, weight = draw(6, 5), draw_pairs(), base.first.weight
    expected = by_hand(base, x, pairs, 1.0)
    merge_(base, pairs)
    assert base.first.weight is weight
    torch.testing.assert_close(base(x).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("samples", [(), (2,)])
def test_gradients_reach_pairs_strength_and_input(base: TwoLayers, samples: tuple[int, ...]) -> None:
    base.double()
    names = list(SIZES)
    pairs = draw_pairs(samples=samples)
    factors = [factor.double().requires_grad_() for pair in pairs.values() for factor in (pair.down, pair.up)]
    x = draw(2, 3, 5).double().requires_grad_()
    strength = torch.tensor([0.8, -0.3], dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, strength: Tensor, *factors: Tensor) -> Tensor:
        with live(base, {n: LoraPair(*factors[2 * k : 2 * k + 2]) for k, n in enumerate(names)}, strength):
            return base(x)

    assert torch.autograd.gradcheck(run, (x, strength, *factors))
    assert all(parameter.grad is None for parameter in base.parameters())


@pytest.mark.parametrize("samples", [(), (2,)])
def test_a_frozen_layer_has_the_gradients_of_one_that_is_trained_too(base: TwoLayers, samples: tuple[int, ...]) -> None:
    def gradients() -> list[Tensor]:
        pairs, x = draw_pairs(samples=samples), draw(2, 6, 5).requires_grad_()
        factors = [factor.requires_grad_() for pair in pairs.values() for factor in (pair.down, pair.up)]
        with live(base, pairs, 0.7):
            base(x).square().sum().backward()
        return [tensor.grad for tensor in (x, *factors)]

    frozen = gradients()
    base.requires_grad_(True)
    for one, other in zip(frozen, gradients(), strict=True):
        torch.testing.assert_close(one, other)
    assert all(parameter.grad is not None for parameter in base.parameters())


@pytest.mark.parametrize("samples", [(), (2,)])
def test_gradients_under_autocast_are_those_without(base: TwoLayers, samples: tuple[int, ...]) -> None:
    def gradients(enabled: bool) -> list[Tensor]:
        pairs = draw_pairs(rank=1, samples=samples)
        factors = [factor.requires_grad_() for pair in pairs.values() for factor in (pair.down, pair.up)]
        with live(base, pairs), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            base(draw(2, 6, 5)).float().sum().backward()
        return [factor.grad for factor in factors]

    for one, other in zip(gradients(True), gradients(False), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.2)  # bfloat16 keeps three digits of each term


def test_without_anything_to_train_no_graph_is_built(base: TwoLayers) -> None:
    with live(base, draw_pairs()):
        assert not base(draw(6, 5)).requires_grad


def test_factors_follow_the_layers_precision(base: TwoLayers) -> None:
    x, pairs = draw(6, 5), draw_pairs(rank=1)
    with live(base, pairs):
        expected = base(x)
    with live(base.bfloat16(), pairs):
        half = base(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.1, atol=0.1)  # bfloat16 keeps three digits


def test_autocast_runs_the_adapter_too(base: TwoLayers) -> None:
    x, pairs = draw(2, 6, 5), draw_pairs(rank=1, samples=(2,))
    with live(base, pairs):
        expected = base(x)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(base(x).float(), expected, rtol=0.1, atol=0.1)  # bfloat16 keeps three digits


def test_a_layer_of_another_base_is_refused_and_nothing_is_touched(base: TwoLayers) -> None:
    good = draw_pairs()
    missing = good | {"third": good["first"]}
    wrong = good | {"inner.second": good["first"]}
    not_linear = good | {"inner": good["first"]}
    for pairs, words in (
        (missing, "no layer 'third'"),
        (wrong, r"needs \(\.\.\., r, 7\) and \(\.\.\., 4, r\)"),
        (not_linear, "not a linear layer"),
    ):
        weight = base.first.weight.clone()
        for context in (live, merged):
            with pytest.raises(BaseMismatchError, match=words), context(base, pairs):
                pass
        with pytest.raises(BaseMismatchError, match=words):
            merge_(base, pairs)
        assert "forward" not in base.first.__dict__
        assert torch.equal(base.first.weight, weight)


def test_another_batch_than_the_adapters_is_refused(base: TwoLayers) -> None:
    pairs = draw_pairs(samples=(2,))
    with live(base, pairs), pytest.raises(ConfigError, match="for 2 samples"):
        base(draw(4, 6, 5))
    with pytest.raises(ConfigError, match="must agree"), live(base, pairs, torch.ones(3)):
        pass
    with pytest.raises(ConfigError, match="one weight serves all"), merged(base, pairs):
        pass


def test_a_layer_without_a_plain_weight_runs_live_only() -> None:
    class Integers(nn.Module):
        in_features, out_features = 5, 7

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.arange(35, dtype=torch.int8).reshape(7, 5))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.to(x.dtype).T

    base, x, pair = nn.ModuleDict({"q": Integers()}), draw(6, 5), draw_pairs()["first"]
    with live(base, {"q": pair}):
        torch.testing.assert_close(base["q"](x), x @ (base["q"].weight.float() + pair.up @ pair.down).T)
    with pytest.raises(BaseMismatchError, match="Run the adapter live"), merged(base, {"q": pair}):
        pass


def test_a_diffusers_unet_merged_and_live_agree() -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.random.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=12,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).requires_grad_(False)  # fmt: skip
    names = [name for name, layer in unet.named_modules()
             if isinstance(layer, nn.Linear) and (".attn1." in name or ".attn2." in name)]  # fmt: skip
    pairs = {
        name: LoraPair(
            0.3 * draw(2, unet.get_submodule(name).in_features, seed=k),
            0.3 * draw(unet.get_submodule(name).out_features, 2, seed=k + 99),
        )
        for k, name in enumerate(names)
    }
    inputs = draw(2, 4, 8, 8), torch.tensor([7, 900]), draw(2, 5, 12)
    before = unet(*inputs).sample
    with live(unet, pairs):
        run_live = unet(*inputs).sample
    with merged(unet, pairs):
        # Two orders of rounding through twenty layers.
        torch.testing.assert_close(unet(*inputs).sample, run_live, rtol=1e-4, atol=1e-5)
    assert (run_live - before).abs().max() > 0.01
    assert torch.equal(unet(*inputs).sample, before)


def test_consecutive_samples_can_share_an_adapter(base: TwoLayers) -> None:
    x, pairs = draw(6, 4, 5), draw_pairs(samples=(2,))
    each = {n: LoraPair(p.down.repeat_interleave(3, 0), p.up.repeat_interleave(3, 0)) for n, p in pairs.items()}
    with live(base, each):
        expected = base(x)
    with live(base, pairs, samples_each=3):
        torch.testing.assert_close(base(x), expected)
    with live(base, pairs, samples_each=2), pytest.raises(ConfigError, match="for 4 samples"):
        base(x)
