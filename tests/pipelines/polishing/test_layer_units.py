"""Steps in each layer's own unit: by the numbers of one layer, and on twins that compute the same otherwise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.rescaled_twins import factors_of, transported, twin
from hyperdream_core.identity import Identity
from hyperdream_core.models.adapted_linear import live
from hyperdream_core.models.output_probe import OutputProbe
from hyperdream_core.pipelines.diffusers.diffusers_base import DiffusersBase
from hyperdream_core.pipelines.polishing.polish import polish
from hyperdream_core.pipelines.polishing.polish_config import PolishConfig

CONFIG = PolishConfig(steps=5, rank=2, batch=2, preserve_batch=2, file_rank=0, anchor=0.01)


@pytest.fixture(scope="module")
def start(base: DiffusersBase) -> Identity:
    pictures = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(9))
    return polish(base, pictures, config=PolishConfig(steps=2, rank=1, batch=1)).identity


def test_a_probe_notes_sizes_and_changes_nothing() -> None:
    layer = torch.nn.Linear(3, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    probe = OutputProbe(torch.tensor([[1.0, 1.0, 0.0]]), torch.zeros(2, 1))
    x = torch.tensor([[[1.0, 1.0, 5.0]], [[0.0, 3.0, 5.0]]])
    with live(torch.nn.Sequential(layer), {"0": probe}):
        assert layer(x).tolist() == [[[1.0, 2.0]], [[0.0, 6.0]]]
    ((outputs, inputs),) = probe.seen
    torch.testing.assert_close(outputs, torch.tensor([5.0, 36.0]))
    torch.testing.assert_close(inputs, torch.tensor([4.0, 9.0]))


@pytest.mark.parametrize("which", ["1/8", "8"])
@pytest.mark.parametrize("has_start", [False, True])
def test_a_twin_is_polished_step_by_step_as_the_base_is(
    base: DiffusersBase, references: Tensor, start: Identity, which: str, has_start: bool
) -> None:
    factors = factors_of(base, which)
    one = polish(base, references, start if has_start else None, CONFIG)
    other = polish(twin(base, factors), references, transported(start, factors) if has_start else None, CONFIG)
    # Powers of two round nowhere.
    assert one.losses == other.losses
    back = transported(other.identity, {name: 1 / factor for name, factor in factors.items()})
    for name, coefficients in one.identity.coefficients.items():
        found = back.coefficients[name]
        assert torch.equal(coefficients.down, found.down) and torch.equal(coefficients.up, found.up), name


def test_a_twin_of_any_factors_is_polished_as_the_base_is_up_to_rounding(
    base: DiffusersBase, references: Tensor
) -> None:
    factors = factors_of(base, "drawn")
    one, other = polish(base, references, None, CONFIG), polish(twin(base, factors), references, None, CONFIG)
    # The errors and not the coefficients: Adam divides by gradients, of which a random base has some near zero.
    torch.testing.assert_close(torch.tensor(one.losses), torch.tensor(other.losses), rtol=1e-4, atol=1e-6)


def test_steps_in_plain_coefficients_tell_twins_apart(base: DiffusersBase, references: Tensor) -> None:
    plain = PolishConfig(steps=5, rank=2, batch=2, file_rank=0, rate_unit="coefficient", learning_rate=0.012)
    one, other = (polish(of, references, None, plain) for of in (base, twin(base, factors_of(base, "8"))))
    assert one.losses[0] == other.losses[0] and one.losses[1:] != other.losses[1:]


def test_a_step_changes_every_layers_output_by_about_its_rate(base: DiffusersBase, references: Tensor) -> None:
    """Measured by hand on the layers that the first sample meets: the output's change over the output."""
    rate = 0.05
    config = PolishConfig(steps=1, rank=4, batch=1, file_rank=0, learning_rate=rate)
    pairs = polish(base, references, None, config).identity.expand()
    layers = dict(base.unet.named_modules())
    shares: list[float] = []

    def note(name: str) -> object:
        def see(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            change = inputs[0] @ pairs[name].down.mT @ pairs[name].up.mT
            shares.append(float(change.norm() / output.norm()))

        return layers[name].register_forward_hook(see)

    hooks = [note(name) for name in pairs]
    with torch.no_grad():
        latents = base.encode_image(references[:1])
        base.predict(latents, torch.tensor([0.7]), base.encode_prompt(["a sks face"]))
    for hook in hooks:
        hook.remove()  # type: ignore[attr-defined]
    # A random base's queries and keys hardly matter to the error, so that Adam's epsilon slows these down.
    assert 0.6 * rate < torch.tensor(shares).median() < 1.5 * rate
    assert max(shares) < 5 * rate
