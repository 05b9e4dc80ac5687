"""Polishing on Automatic1111's loaded checkpoint: every trap that its Lora extension and its options set."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hyperdream_webui import a1111_base as loaded_model
from torch import nn

from hyperdream_core.errors import BaseMismatchError, ConfigError
from hyperdream_core.pipelines.polishing.polish import polish
from hyperdream_core.pipelines.polishing.polish_config import PolishConfig

from .conftest import FakeModel, FakeUNet, Networks

FEW = PolishConfig(steps=4, rank=1, batch=2, crops=0)


@pytest.fixture
def model(a1111: SimpleNamespace) -> FakeModel:
    torch.manual_seed(0)
    a1111.shared.sd_model = FakeModel("miniature")
    return a1111.shared.sd_model


def references(model: FakeModel) -> torch.Tensor:
    return torch.rand(1, 3, 8 * model.factor, 8 * model.factor, generator=torch.Generator().manual_seed(1))


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.named_parameters()}


def draw_with_lora(model: FakeModel, networks: Networks, *names: str) -> None:
    """What a picture leaves behind: LoRAs merged into the layers that were called."""
    networks.load_networks(list(names))
    with torch.no_grad():
        for name, module in model.model.named_modules():
            if isinstance(module, nn.Linear):
                module.network_layer_name = name
        model.apply_model(
            torch.zeros(1, model.channels, 8, 8), torch.tensor([500]), {"c_crossattn": [torch.ones(1, 77, 4)]}
        )


def test_polishing_changes_no_weight_and_leaves_the_flags(model: FakeModel) -> None:
    before = weights_of(model)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    result = polish(loaded_model.loaded_base(), references(model), None, FEW)
    assert len(result.losses) == 4 and result.losses[-1] < result.losses[0] * 2
    assert any(c.up.abs().max() > 0 for c in result.identity.coefficients.values())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.named_parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags and any(flags)
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_the_last_pictures_lora_is_taken_out_before(model: FakeModel, networks: Networks) -> None:
    clean = weights_of(model)
    draw_with_lora(model, networks, "somebody")
    assert not all(torch.equal(clean[name], tensor) for name, tensor in model.named_parameters())
    base = loaded_model.loaded_base()
    assert all(torch.equal(clean[name], tensor) for name, tensor in model.named_parameters())
    with_lora_before = polish(base, references(model), None, FEW).identity
    networks.load_networks([])
    without = polish(loaded_model.loaded_base(), references(model), None, FEW).identity
    for name, coefficients in without.coefficients.items():
        assert torch.equal(coefficients.up, with_lora_before.coefficients[name].up)


def test_a_forward_with_gradients_fails_on_a_merged_lora_as_in_the_host(model: FakeModel, networks: Networks) -> None:
    draw_with_lora(model, networks, "somebody")
    networks.load_networks([])
    inputs: Any = torch.zeros(1, model.channels, 8, 8), torch.tensor([500]), {"c_crossattn": [torch.ones(1, 77, 4)]}
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        model.apply_model(*inputs)


def test_without_the_lora_extension_nothing_is_to_be_taken_out(
    model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "networks")
    assert loaded_model.loaded_base().family.name == "miniature"


def test_latents_are_the_mean_and_pictures_come_back(model: FakeModel) -> None:
    base = loaded_model.loaded_base()
    grey = torch.full((2, 3, 8 * model.factor, 8 * model.factor), 0.25)
    latents = base.encode_image(grey)
    assert torch.equal(latents, torch.full((2, model.channels, 8, 8), -0.25))
    torch.testing.assert_close(base.decode_latents(latents), grey)


def test_a_v_model_is_known_as_one(model: FakeModel) -> None:
    model.parameterization = "v"
    assert loaded_model.loaded_base().noise.name == "v_prediction"


@pytest.mark.parametrize(
    ("part", "name", "value", "words"),
    [
        ("shared", "sd_model", None, "no checkpoint is loaded"),
        ("devices", "fp8", True, "stored in 8 bits"),
        ("sd_unet", "current_unet", object(), "TensorRT"),
    ],
)
def test_a_state_that_cannot_be_trained_in_is_refused(
    a1111: SimpleNamespace, model: FakeModel, part: str, name: str, value: Any, words: str
) -> None:
    setattr(getattr(a1111, part), name, value)
    with pytest.raises(ConfigError, match=words):
        loaded_model.loaded_base()


def test_low_memory_mode_and_sd3_are_refused(a1111: SimpleNamespace, model: FakeModel) -> None:
    model.is_sd3 = True
    with pytest.raises(ConfigError, match="without a UNet"):
        loaded_model.loaded_base()
    a1111.shared.cmd_opts.lowvram = True
    with pytest.raises(ConfigError, match="--lowvram"):
        loaded_model.loaded_base()


def test_sdxl_is_refused_by_name(model: FakeModel) -> None:
    with torch.device("meta"):
        model.model.diffusion_model = FakeUNet("sdxl")
    with pytest.raises(BaseMismatchError, match="Stable Diffusion XL"):
        loaded_model.loaded_base()
