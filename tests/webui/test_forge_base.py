"""Forge's traps: inference tensors, residuals added in place, a thread that swallows errors, low-bit storage."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hyperdream_webui import forge_base, host

from hyperdream_core.errors import ConfigError
from hyperdream_core.pipelines.polishing.memory import Plan
from hyperdream_core.pipelines.polishing.polish import polish
from hyperdream_core.pipelines.polishing.polish_config import PolishConfig

from .conftest import FakeModel, FakeUNet

FEW = PolishConfig(steps=3, rank=1, batch=2, crops=0)


@pytest.fixture
def engine(a1111: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Forge's model object, its weights loaded within inference mode."""
    refreshed = []
    with torch.inference_mode():
        torch.manual_seed(0)
        unet, plain = FakeUNet("miniature", in_place=True), FakeModel("miniature")
    model = SimpleNamespace(
        diffusion_model=unet,
        storage_dtype=torch.float32,
        computation_dtype=torch.float32,
        predictor=SimpleNamespace(prediction_type="epsilon", sigmas=torch.linspace(0.03, 14.0, 1000)),
    )
    patcher = SimpleNamespace(model=model, refresh_loras=lambda: refreshed.append(True))

    def encoded(pictures: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return plain.encode_first_stage(pictures).mode() * 0.5

    def learned(prompts: list[str]) -> torch.Tensor:
        with torch.inference_mode():
            return plain.get_learned_conditioning(prompts)

    made = SimpleNamespace(
        forge_objects_original=SimpleNamespace(unet=patcher),
        encode_first_stage=encoded,
        get_learned_conditioning=learned,
        refreshed=refreshed,
        factor=plain.factor,
    )
    package = sys.modules["modules"]
    models = SimpleNamespace(forge_model_reload=lambda: (made, False))
    monkeypatch.setattr(package, "sd_models", models, raising=False)
    backend: Any = ModuleType("backend")
    backend.memory_management = SimpleNamespace(
        get_torch_device=lambda: torch.device("cpu"),
        load_model_gpu=lambda patcher: None,
        get_free_memory=lambda device: 5e9,
        current_loaded_models=[],
    )
    monkeypatch.setitem(sys.modules, "backend", backend)
    return made


def references(engine: Any) -> torch.Tensor:
    return torch.rand(1, 3, 8 * engine.factor, 8 * engine.factor, generator=torch.Generator().manual_seed(1))


def test_the_traps_are_there(engine: Any) -> None:
    unet = engine.forge_objects_original.unet.model.diffusion_model
    assert all(parameter.is_inference() for parameter in unet.parameters())
    block = FakeUNet("miniature", in_place=True).blend
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        block(torch.ones(2, 8, requires_grad=True) * 2).sum().backward()


def test_polishing_works_and_changes_no_weight(engine: Any) -> None:
    unet = engine.forge_objects_original.unet.model.diffusion_model
    before = {name: tensor.clone() for name, tensor in unet.named_parameters()}
    result = polish(forge_base.loaded_base(), references(engine), None, FEW)
    assert len(result.losses) == 3 and any(c.up.abs().max() > 0 for c in result.identity.coefficients.values())
    assert engine.refreshed
    assert all(torch.equal(before[name], tensor) for name, tensor in unet.named_parameters())
    assert not any(module._forward_pre_hooks for module in unet.modules())


def test_copies_of_the_input_make_no_other_result() -> None:
    block = FakeUNet("miniature", in_place=True).blend
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(2))
    expected = block(x.clone())
    with forge_base.without_in_place_residuals(block):
        assert torch.equal(block(x.clone()), expected)


@pytest.mark.parametrize("storage", ["nf4", "gguf", torch.float8_e4m3fn])
def test_low_bits_are_refused(engine: Any, storage: Any) -> None:
    engine.forge_objects_original.unet.model.storage_dtype = storage
    with pytest.raises(ConfigError, match="16 or 32 bit floats"):
        forge_base.loaded_base()


def test_an_error_in_the_thread_for_models_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def swallowing(job: Any) -> Any:
        try:
            return job()
        except Exception:
            return None

    package: Any = ModuleType("modules_forge")
    package.main_thread = SimpleNamespace(run_and_wait_result=swallowing)
    monkeypatch.setitem(sys.modules, "modules_forge", package)
    monkeypatch.setattr(host, "is_forge", lambda: True)
    assert host.WebUI().with_models(lambda: 7) == 7
    with pytest.raises(ConfigError, match="no such thing"):
        host.WebUI().with_models(lambda: (_ for _ in ()).throw(ConfigError("no such thing")))


def test_room_is_what_forge_has_free_and_can_take_from_others(engine: Any) -> None:
    from backend import memory_management

    base = forge_base.loaded_base()
    assert (base.room().free, base.room().number_size, base.room().cast_weights) == (5e9, 4, 0)
    base.device = torch.device("meta")
    base.unet.to_empty(device="meta")
    other = SimpleNamespace(model=SimpleNamespace(model=torch.nn.Linear(10, 10, bias=False, device="meta")))
    memory_management.current_loaded_models += [SimpleNamespace(model=base.patcher), other]
    assert base.room().free == 5e9 + 400
    asked: list[Any] = []
    memory_management.free_memory = lambda size, device, keep_loaded: asked.extend(keep_loaded)
    with base.encoders_away():
        assert [one.model for one in asked] == [base.patcher]


def test_computing_twice_gives_the_same_though_residuals_are_added_in_place(engine: Any) -> None:
    base, plan = forge_base.loaded_base(), Plan(samples_at_once=2, recomputes=True, size=64, bytes_needed=0.0)
    usual, lean = (polish(base, references(engine), None, FEW, plan=one).identity for one in (None, plan))
    for name, pair in usual.coefficients.items():
        torch.testing.assert_close(lean.coefficients[name].up, pair.up, atol=1e-5, rtol=1e-3)
