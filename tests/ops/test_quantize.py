"""Quantised weights against the same written out in loops, one number after the other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from hyperdream_core.errors import ConfigError
from hyperdream_core.ops.quantize import KINDS, QuantizedWeight, bits_per_weight, dequantize, quantize, stored_bytes
from hyperdream_core.ops.quantize.kinds import NF4_LEVELS

SHAPES = [(7, 5), (3, 64), (6, 130), (5, 3, 3, 2), (4, 16, 1, 1)]
GROUPS = [None, 0, 4]
F32 = np.float32


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(weight: Tensor, **how: object) -> float:
    stands_for = dequantize(quantize(weight, **how))  # type: ignore[arg-type]
    return float((stands_for - weight).norm() / weight.norm())


def written_out(weight: QuantizedWeight) -> Tensor:
    """What the codes stand for, by the formula, number by number in float32."""
    outputs, inputs, each = weight.shape[0], math.prod(weight.shape[1:]), math.prod(weight.shape[2:])
    values = np.zeros((outputs, inputs), F32)
    for o in range(outputs):
        for i in range(inputs):
            byte = int(weight.codes[o, i // 2]) if KINDS[weight.kind].bits == 4 else int(weight.codes[o, i])
            code = (byte >> 4 if i % 2 == 0 else byte & 15) if KINDS[weight.kind].bits == 4 else byte
            g = i // weight.group
            scale = F32(weight.scale_out[o])
            if weight.group_scale is not None:
                scale = scale * F32(weight.group_scale[o, g])
            if weight.zero_point is None:
                value = F32(NF4_LEVELS[code]) * scale
            else:
                value = F32(code - int(weight.zero_point[o, g])) * scale
            values[o, i] = value if weight.scale_in is None else value * F32(weight.scale_in[i // each])
    return torch.from_numpy(values).reshape(weight.shape)


def min_max_written_out(row: np.ndarray, kind: str, group: int) -> tuple[list[F32], list[F32]]:
    """Step and zero point of each group of one output."""
    steps, zeros = [], []
    for first in range(0, len(row), group):
        part = row[first : first + group]
        if kind == "nf4":
            steps.append(F32(max(abs(float(number)) for number in part)))
            zeros.append(F32(0))
            continue
        most = 2 ** KINDS[kind].bits - 1
        low, high = min(F32(0), part.min()), max(F32(0), part.max())
        steps.append((high - low) * F32(1 / most))
        zeros.append(np.round(-low / steps[-1]))
    return steps, zeros


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group", GROUPS)
def test_a_quantised_weight_stands_for_what_the_formula_says(kind: str, shape: tuple[int, ...], group: int) -> None:
    for fit in ("best", "min-max"):
        weight = quantize(draw(*shape), kind, group, fit)
        assert torch.equal(dequantize(weight), written_out(weight))
    both = QuantizedWeight(
        kind=kind, shape=weight.shape, group=weight.group, **weight.tensors() | {"scale_in": draw(shape[1])}
    )
    assert torch.equal(dequantize(both), written_out(both))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", GROUPS)
def test_min_max_gives_the_scales_and_codes_of_the_loop(kind: str, group: int | None) -> None:
    weight = draw(6, 130)
    found = quantize(weight, kind, group, "min-max")
    for row in range(6):
        numbers = weight[row].numpy()
        steps, zeros = min_max_written_out(numbers, kind, found.group)
        assert F32(found.scale_out[row]) == max(steps)
        shares = [np.float16(step / max(steps)) for step in steps]
        if len(steps) > 1:
            assert [np.float16(share) for share in found.group_scale[row]] == shares
            steps = [max(steps) * F32(share) for share in shares]
        if kind != "nf4":
            assert found.zero_point[row].tolist() == zeros
        for i, number in enumerate(numbers):
            step, zero = steps[i // found.group], zeros[i // found.group]
            byte = int(found.codes[row, i]) if kind == "int8" else int(found.codes[row, i // 2])
            code = byte if kind == "int8" else byte >> 4 if i % 2 == 0 else byte & 15
            if kind == "nf4":
                nearest = min(range(16), key=lambda level: abs(float(number / step) - NF4_LEVELS[level]))
                assert code == nearest
            else:
                assert code == min(max(np.round(number / step) + zero, 0), 2 ** KINDS[kind].bits - 1)


def test_the_worked_example_of_packed_codes() -> None:
    weight = QuantizedWeight(
        kind="int4",
        shape=(1, 4),
        group=2,
        codes=torch.tensor([[0x30, 0xF1]], dtype=torch.uint8),
        scale_out=torch.tensor([0.5]),
        group_scale=torch.tensor([[1.0, 0.25]]).half(),
        zero_point=torch.tensor([[1, 0]], dtype=torch.uint8),
    )
    assert dequantize(weight).tolist() == [[1.0, -0.5, 1.875, 0.125]]


def test_nf4_has_the_published_levels() -> None:
    """QLoRA's construction: quantiles of the normal distribution from 1 - 0.9677083 each way, 7 below 0 and 8 above,
    over the largest."""
    normal = torch.distributions.Normal(0.0, 1.0)
    offset = 0.9677083
    up = normal.icdf(torch.linspace(offset, 0.5, 9, dtype=torch.float64)[:-1])
    down = -normal.icdf(torch.linspace(offset, 0.5, 8, dtype=torch.float64)[:-1])
    levels = torch.cat([down, torch.zeros(1, dtype=torch.float64), up]).sort().values
    torch.testing.assert_close(torch.tensor(NF4_LEVELS, dtype=torch.float64), levels / levels.max(), rtol=0, atol=3e-7)
    assert len(NF4_LEVELS) == 16 and NF4_LEVELS[7] == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", [0, 32])
def test_the_best_fit_errs_less_than_min_max_in_every_group(kind: str, group: int) -> None:
    weight = torch.distributions.StudentT(4.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weight = weight.sample((24, 96))
    errors = {}
    for fit in ("best", "min-max"):
        difference = dequantize(quantize(weight, kind, group, fit)) - weight
        errors[fit] = difference.unflatten(1, (-1, group or 96)).square().sum(-1)
    # The scale's share in half precision costs some groups a trifle.
    assert bool((errors["best"] <= errors["min-max"] * 1.005).all())
    assert errors["best"].sum() < errors["min-max"].sum() * 0.995


def test_the_best_fit_is_close_to_the_best_of_all_ranges() -> None:
    """Against 60 x 60 ranges with both ends free, in float64."""
    weight = draw(6, 64)
    for row in weight:
        least = math.inf
        for low in torch.linspace(0.4, 1, 60).double() * float(row.min()):
            highs = torch.linspace(0.4, 1, 60).double() * float(row.max())
            step = ((highs - low) / 15)[:, None]
            zero = (-low / step).round()
            tried = step * (((row / step).round() + zero).clamp(0, 15) - zero)
            least = min(least, float((tried - row).square().sum(-1).min()))
        ours = float((dequantize(quantize(row[None], "int4", 0)) - row).square().sum())
        assert ours < 1.2 * least


def test_errors_of_normal_weights_are_a_steps_twelfth() -> None:
    """A uniform error of a step has the variance step^2 / 12."""
    weight = draw(32, 512)
    found = quantize(weight, "int8", fit="min-max")
    difference = dequantize(found) - weight
    step = found.scale_out[:, None]
    assert float((difference / step).square().mean()) == pytest.approx(1 / 12, rel=0.03)
    assert float(difference.abs().max() / step.max()) <= 0.501


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros_and_one_sided_weights_are_met_at_their_ends(kind: str) -> None:
    weight = draw(5, 70).abs() * torch.tensor([1.0, -1.0, 0.0, 1.0, 1.0])[:, None]
    weight[3, :64] = 0
    weight[:, 7] = 0
    for fit in ("min-max", "best"):
        stands_for = dequantize(quantize(weight, kind, fit=fit))
        assert torch.equal(stands_for[2], torch.zeros(70)) and torch.equal(stands_for[:, 7], torch.zeros(5))
        assert torch.equal(stands_for[3, :64], torch.zeros(64))
    exact = dequantize(quantize(weight, kind, 0, "min-max"))
    rows = [0, 1]
    torch.testing.assert_close(exact[rows].abs().amax(1), weight[rows].abs().amax(1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_weight_quantised_again_is_itself(kind: str) -> None:
    once = dequantize(quantize(draw(8, 64), kind, 0, "min-max"))
    torch.testing.assert_close(dequantize(quantize(once, kind, 0, "min-max")), once, rtol=1e-6, atol=1e-6)


def test_fewer_bits_and_larger_groups_err_more() -> None:
    weight = draw(64, 512)
    errors = [
        relative_error(weight, kind="int8"),
        *(relative_error(weight, kind="int4", group=g) for g in (32, 128, 0)),
    ]
    assert errors == sorted(errors)
    assert errors[0] < 0.01 < 0.07 < errors[1] and errors[-1] < 0.11


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group", GROUPS)
def test_the_bytes_stated_are_those_that_are_there(kind: str, shape: tuple[int, ...], group: int) -> None:
    found = quantize(draw(*shape), kind, group)
    assert found.size_in_bytes() == stored_bytes(kind, shape, group)
    assert bits_per_weight(kind, shape, group) == 8 * found.size_in_bytes() / math.prod(shape)


def test_bits_of_a_large_layer() -> None:
    shape = (1280, 1280)
    assert bits_per_weight("int8", shape) == 8 + (32 + 8) / 1280
    assert bits_per_weight("int4", shape) == 4 + (16 + 8) / 64 + 32 / 1280
    assert bits_per_weight("nf4", shape) == 4 + 16 / 64 + 32 / 1280


def test_a_half_precision_weight_is_fitted_as_its_float32(recwarn: pytest.WarningsRecorder) -> None:
    weight = draw(4, 64).bfloat16()
    ours, wide = quantize(weight, "int4"), quantize(weight.float(), "int4")
    assert torch.equal(ours.codes, wide.codes) and torch.equal(ours.scale_out, wide.scale_out)
    assert dequantize(ours, torch.bfloat16).equal(dequantize(wide).bfloat16())


def test_what_cannot_be_quantised_is_refused_with_the_reason() -> None:
    weight = draw(3, 8)
    with pytest.raises(
        ConfigError, match=r"unknown kind of quantisation 'int3'; known: int8, int4, nf4. None has under"
    ):
        quantize(weight, "int3")
    with pytest.raises(ConfigError, match="unknown fit 'gptq'; known: best, min-max"):
        quantize(weight, "int4", fit="gptq")
    for group in (3, -2):
        with pytest.raises(ConfigError, match=f"a group of {group} inputs would begin in the middle of a byte"):
            quantize(weight, "int4", group)
    for wrong in (draw(8), draw(2, 2, 2), torch.zeros(0, 4), torch.ones(2, 2, dtype=torch.int8)):
        with pytest.raises(ConfigError, match="cannot be quantised, expected floating-point numbers"):
            quantize(wrong, "int8")
    weight[1, 2], weight[0, 0] = math.nan, math.inf
    with pytest.raises(ConfigError, match="the weight holds 2 of 24 numbers that are not finite"):
        quantize(weight, "nf4")
