"""What polishing is measured against: PEFT's LoRA, and LiDB as published, trained on one picture of the miniature.

Both train as their own scripts do: noise levels drawn evenly, the mean squared error of the whole picture, AdamW at a
constant rate, the prompt with what the base reads off the picture, as ours has it. Only what runs at every step is
counted: the layers are wrapped before.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hyperdream_core.miniature.trial.trial import Trial
from hyperdream_core.miniature.world.captions import IDENTIFIER, describe_references
from hyperdream_core.ops.lidb import LidbCoefficients, auxiliary_basis, basis_sizes, expand, fresh_coefficients
from hyperdream_core.ops.lowrank import LoraPair
from hyperdream_core.pipelines.base import Base, frozen


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a run had reached."""

    step: int
    seconds: float
    """of the processor, from the picture on"""
    pairs: Mapping[str, LoraPair]


class Clock:
    """Processor seconds of a run, without those in which it was stopped."""

    def __init__(self) -> None:
        self._spent, self._resumed = 0.0, time.process_time()

    @contextmanager
    def stopped(self) -> Iterator[float]:
        """Gives the seconds so far; what happens inside does not count."""
        self._spent += time.process_time() - self._resumed
        try:
            yield self._spent
        finally:
            self._resumed = time.process_time()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of one of the rivals."""

    rate: float
    rank: int
    batch: int
    steps: int
    seed: int = 0


@dataclass(frozen=True, eq=False)
class _Adapter:
    """Something trainable on a base."""

    base: Base
    trained: Sequence[Tensor]
    active: Callable[[], AbstractContextManager[Any]]
    """around every call of the base"""
    pairs: Callable[[], Mapping[str, LoraPair]]
    """it as it is by now"""


def train_peft(trial: Trial, row: int, settings: Settings, at: Sequence[int]) -> list[Checkpoint]:
    """PEFT's LoRA on the attention layers, as `train_dreambooth_lora.py` of diffusers sets it up."""
    from peft import LoraConfig, inject_adapter_in_model

    base: Any = trial.base
    weights = {id(parameter): parameter for parameter in base.unet.parameters()}
    with frozen(base):
        unet = copy.deepcopy(base.unet, weights)
    names = [layer.name for layer in base.family.layers("attention")]
    torch.manual_seed(settings.seed)
    inject_adapter_in_model(
        LoraConfig(r=settings.rank, lora_alpha=settings.rank, init_lora_weights="gaussian", target_modules=names), unet
    )
    modules = {name: unet.get_submodule(name) for name in names}
    sides = [(one.lora_A["default"].weight, one.lora_B["default"].weight) for one in modules.values()]
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_("lora_" in name)

    def pairs() -> dict[str, LoraPair]:
        return {
            name: LoraPair(*(one.detach().clone() for one in pair)) for name, pair in zip(names, sides, strict=True)
        }

    trained = [one for pair in sides for one in pair]
    try:
        return _train(trial, row, settings, at, _Adapter(replace(base, unet=unet), trained, _nothing, pairs))
    finally:
        # The copy shares the base's own weights, which were frozen before.
        base.unet.requires_grad_(False)


def train_lidb(trial: Trial, row: int, settings: Settings, at: Sequence[int]) -> list[Checkpoint]:
    """LiDB coefficients at one constant rate, each layer's multiplied out on its own basis at every step."""
    base, layers = trial.base, trial.base.family.layers("attention")
    generator = torch.Generator().manual_seed(settings.seed)
    bases = {}
    coefficients = {}
    for layer in layers:
        bases[layer.name] = auxiliary_basis(base.family.name, layer.name, layer.in_features, layer.out_features)
        p, a = basis_sizes(layer.in_features, layer.out_features)
        fresh = fresh_coefficients(p, a, settings.rank, generator)
        coefficients[layer.name] = LidbCoefficients(fresh.down.requires_grad_(), fresh.up.requires_grad_())
    trained = [side for one in coefficients.values() for side in (one.down, one.up)]

    def pairs() -> dict[str, LoraPair]:
        return {name: expand(one, bases[name]) for name, one in coefficients.items()}

    return _train(trial, row, settings, at, _Adapter(base, trained, lambda: base.adapted(pairs()), pairs))


def _train(trial: Trial, row: int, settings: Settings, at: Sequence[int], adapter: _Adapter) -> list[Checkpoint]:
    clock, found = Clock(), list[Checkpoint]()
    base, picture = adapter.base, trial.references[row : row + 1]
    with frozen(trial.base):
        with torch.no_grad():
            clean = base.encode_image(picture).expand(settings.batch, -1, -1, -1)
            words = f"a {IDENTIFIER} face, {describe_references(trial.base, picture)[0]}"
            conditioning = base.encode_prompt([words]).repeat_each(settings.batch)
        for parameter in adapter.trained:
            parameter.requires_grad_()
        optimizer = torch.optim.AdamW(adapter.trained, lr=settings.rate)
        generator = torch.Generator().manual_seed(settings.seed)
        for step in range(1, settings.steps + 1):
            t = torch.rand(settings.batch, generator=generator)
            noise = torch.randn(clean.shape, generator=generator)
            noisy, wanted = base.noise.noisy(clean, noise, t), base.noise.target(clean, noise, t)
            with adapter.active():
                (base.predict(noisy, t, conditioning) - wanted).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step in at or step == settings.steps:
                with clock.stopped() as seconds, torch.no_grad():
                    found.append(Checkpoint(step, seconds, adapter.pairs()))
    return found


@contextmanager
def _nothing() -> Iterator[None]:
    yield
