"""Small fakes of the names that the tab uses of its hosts, as they behave and not as they are written."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hyperdream_core.bases import get_base
from hyperdream_core.bases.keys import to_ldm
from hyperdream_core.identity import Identity
from hyperdream_core.ops.lidb import LidbCoefficients, basis_sizes, fresh_coefficients

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))


def idle_host() -> Any:
    """A host that runs the tab's jobs at once and does nothing besides."""
    return SimpleNamespace(
        queued=lambda job, outputs: job,
        interrupt=lambda: None,
        refresh_networks=lambda: None,
        with_models=lambda job: job(),
    )


LAYERS = 5
"""of the fake UNet that take part in its output, from each end"""


def make_identity(family: str = "sd15", seed: int = 3, scale: float = 0.05) -> Identity:
    """A random identity of rank 1."""
    generator = torch.Generator().manual_seed(seed)
    coefficients = {}
    for layer in get_base(family).layers("attention"):
        p, a = basis_sizes(layer.in_features, layer.out_features)
        fresh = fresh_coefficients(p, a, 1, generator)
        coefficients[layer.name] = LidbCoefficients(fresh.down, scale * torch.randn(a, 1, generator=generator))
    return Identity(family=family, target_set="attention", rank=1, coefficients=coefficients)


class BasicTransformerBlock(nn.Module):
    """Adds to its input in place, as Forge's does."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(8) for _ in range(3))
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        for norm in (self.norm1, self.norm2, self.norm3):
            change = norm(x).tanh()
            if self.in_place:
                x += change
            else:
                x = x + change
        return x


class FakeUNet(nn.Module):
    """The attention layers of a family under ldm's names; the output depends on some of them."""

    def __init__(self, family: str, in_place: bool = False) -> None:
        super().__init__()
        base = get_base(family)
        self.names = [to_ldm(layer.name, base) for layer in base.layers("attention")]
        for name, layer in zip(self.names, base.layers("attention"), strict=True):
            place: nn.Module = self
            *above, last = name.split(".")
            for part in above:
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place._modules[part]
            place.add_module(last, nn.Linear(layer.in_features, layer.out_features, bias=False))
        self.blend = BasicTransformerBlock(in_place)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, **_: Any) -> Tensor:
        heart = torch.nn.functional.pad(x.flatten(1), (0, 8))[:, :8] * (timesteps[:, None] / 1000)
        heart = self.blend(heart.clone())
        total = x
        for name in self.names[:LAYERS] + self.names[-LAYERS:]:
            layer = self.get_submodule(name)
            source = context.flatten(1) if ".attn2.to_k" in name or ".attn2.to_v" in name else heart
            wide = torch.nn.functional.pad(source, (0, layer.in_features))[:, : layer.in_features]
            total = total + layer(wide).mean(1)[:, None, None, None]
        return total


class FakeLatents:
    """What the VAE of ldm gives: a distribution with a mode and a random sample."""

    def __init__(self, mean: Tensor) -> None:
        self.mean = mean

    def mode(self) -> Tensor:
        return self.mean

    def sample(self) -> Tensor:
        raise AssertionError("the latents of a reference are its mean, without noise")


class FakeModel(nn.Module):
    """`shared.sd_model` of Automatic1111."""

    def __init__(self, family: str) -> None:
        super().__init__()
        self.channels = get_base(family).latent_channels
        self.factor = get_base(family).vae_factor
        self.text_width = get_base(family).unet.context_dim
        self.model = nn.Module()
        self.model.diffusion_model = FakeUNet(family)
        self.cond_stage_model = nn.Linear(3, 3).requires_grad_(False)
        self.first_stage_model = nn.Linear(3, 3).requires_grad_(False)
        self.parameterization = "eps"
        self.alphas_cumprod = torch.linspace(0.999, 0.005, 1000)
        self.is_sd3 = False

    def get_learned_conditioning(self, prompts: list[str]) -> Tensor:
        return torch.stack([torch.full((77, self.text_width), float(len(prompt)) / 20) for prompt in prompts])

    def encode_first_stage(self, pictures: Tensor) -> FakeLatents:
        small = torch.nn.functional.avg_pool2d(pictures.mean(1, keepdim=True), self.factor)
        return FakeLatents(small.expand(-1, self.channels, -1, -1))

    def get_first_stage_encoding(self, code: Any) -> Tensor:
        return 0.5 * (code.sample() if isinstance(code, FakeLatents) else code)

    def decode_first_stage(self, latents: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(latents[:, :3], scale_factor=self.factor) / 0.5

    def apply_model(self, x: Tensor, t: Tensor, cond: dict[str, list[Tensor]]) -> Tensor:
        return self.model.diffusion_model(x, t, context=torch.cat(cond["c_crossattn"], 1))


class FakeState:
    """`shared.state`."""

    def __init__(self) -> None:
        self.interrupted = self.stopping_generation = False
        self.job_count, self.job_no, self.sampling_step, self.sampling_steps = -1, 0, 0, 0
        self.textinfo, self.pictures = "", list[Image.Image]()

    def begin(self, job: str) -> None:
        self.job_count, self.interrupted = -1, False

    def end(self) -> None:
        self.job_count = 0

    def interrupt(self) -> None:
        self.interrupted = True

    def assign_current_image(self, picture: Image.Image) -> None:
        self.pictures.append(picture)


class Networks(ModuleType):
    """Automatic1111's Lora extension: merges lazily, inside a layer's call, and undoes it in a later one."""

    def __init__(self) -> None:
        super().__init__("networks")
        self.loaded_networks: list[Any] = []
        self.refreshed = 0
        self.module_types: list[Any] = [ModuleTypeLora()]

    def load_networks(self, names: list[str]) -> None:
        self.loaded_networks[:] = [SimpleNamespace(name=name) for name in names]

    def list_available_networks(self) -> None:
        self.refreshed += 1

    def network_apply_weights(self, layer: Any) -> None:
        if getattr(layer, "network_layer_name", None) is None:
            return
        wanted = tuple(network.name for network in self.loaded_networks)
        current = getattr(layer, "network_current_names", ())
        if current == wanted:
            return
        if getattr(layer, "network_weights_backup", None) is None:
            layer.network_weights_backup = layer.weight.detach().clone()
        layer.weight.copy_(layer.network_weights_backup)  # in place, and not under no_grad
        with torch.no_grad():
            for name in wanted:
                layer.weight += 0.01 * len(name)
        layer.network_current_names = wanted


class AnyModuleType:
    """The base class of Automatic1111's module types."""


class ModuleTypeLora(AnyModuleType):
    """The one for LoRA: keeps the factors it is given."""

    def create_module(self, net: Any, weights: Any) -> Any:
        return dict(weights.w) if "lora_up.weight" in weights.w else None


class FakeScript:
    """The base class of scripts."""

    def process(self, p: Any, *values: Any) -> None:
        raise AssertionError("the script's own comes first")


class FakePrompts(list):
    """Prompts with the picture's size."""

    def __init__(self, prompts: list[str], width: int, height: int) -> None:
        super().__init__(prompts)
        self.size = width, height


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> Networks:
    """The Lora extension, with every linear layer of torch in its hands."""
    module = Networks()
    monkeypatch.setitem(sys.modules, "networks", module)
    forward = nn.Linear.forward

    def patched(layer: nn.Linear, x: Tensor) -> Tensor:
        module.network_apply_weights(layer)
        return forward(layer, x)

    monkeypatch.setattr(nn.Linear, "forward", patched)
    return module


@pytest.fixture
def a1111(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, networks: Networks) -> Iterator[SimpleNamespace]:
    """The package `modules`; its parts as attributes."""
    options = SimpleNamespace(lowvram=False, api=True, nowebui=False, api_auth=None, lora_dir=str(tmp_path / "Lora"))
    callbacks: list[tuple[str, Callable[..., Any]]] = []
    parts = SimpleNamespace(
        shared=SimpleNamespace(
            cmd_opts=options, state=FakeState(), sd_model=None, opts=SimpleNamespace(use_old_scheduling=False)
        ),
        devices=SimpleNamespace(
            device=torch.device("cpu"),
            dtype_unet=torch.float32,
            dtype_vae=torch.float32,
            fp8=False,
            autocast=nullcontext,
        ),
        sd_unet=SimpleNamespace(current_unet=None),
        prompt_parser=SimpleNamespace(SdConditioning=FakePrompts),
        scripts=SimpleNamespace(Script=FakeScript, AlwaysVisible=object()),
        paths_internal=SimpleNamespace(models_path=str(tmp_path / "models")),
        call_queue=SimpleNamespace(queue_lock=threading.Lock()),
        script_callbacks=SimpleNamespace(
            on_before_ui=lambda f: callbacks.append(("before_ui", f)),
            on_ui_tabs=lambda f: callbacks.append(("ui_tabs", f)),
            on_app_started=lambda f: callbacks.append(("app_started", f)),
        ),
        callbacks=callbacks,
    )
    package = ModuleType("modules")
    package.__path__ = []  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modules", package)
    for name, part in vars(parts).items():
        setattr(package, name, part)
        monkeypatch.setitem(sys.modules, f"modules.{name}", part)  # type: ignore[arg-type]
    yield parts
