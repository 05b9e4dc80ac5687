"""What the pipelines ask of a base model, whichever host it lives in."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..bases import BaseFamily
from ..ops.changes import LayerChange
from ..ops.finite import sound
from ..ops.noise import NoiseProcess


@dataclass(frozen=True, eq=False)
class Conditioning:
    """Encoded prompts."""

    tokens: Tensor
    """(b, n, d), the text encoders' hidden states"""
    pooled: Tensor | None = None
    """(b, d), for bases that also take the whole prompt as one vector (SDXL)"""

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __getitem__(self, rows: Tensor | slice | list[int]) -> Conditioning:
        return Conditioning(self.tokens[rows], None if self.pooled is None else self.pooled[rows])

    def repeat_each(self, count: int) -> Conditioning:
        """Every row `count` times in a row: (b * count, ...)."""
        pooled = None if self.pooled is None else self.pooled.repeat_interleave(count, 0)
        return Conditioning(self.tokens.repeat_interleave(count, 0), pooled)

    @staticmethod
    def interleave(*parts: Conditioning) -> Conditioning:
        """Rows of all parts in turn: (len(parts) * b, ...); of one part, itself."""
        if len(parts) == 1:
            return parts[0]
        tokens = torch.stack([part.tokens for part in parts], dim=1).flatten(0, 1)
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return Conditioning(tokens, torch.stack(pooled, dim=1).flatten(0, 1) if len(pooled) == len(parts) else None)


class Base(Protocol):
    """A frozen text-to-image model with linear layers that can be adapted."""

    @property
    def family(self) -> BaseFamily: ...
    @property
    def noise(self) -> NoiseProcess:
        """How noise gets into its latents, and what its UNet is asked for."""
        ...

    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype:
        """Of the UNet's weights."""
        ...

    def modules(self) -> Sequence[nn.Module]:
        """All networks, for whoever must leave them as they were."""
        ...

    def encode_prompt(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts as (b, n, d); gradients flow if adapters of the text encoders need any."""
        ...

    def encode_image(self, images: Tensor) -> Tensor:
        """Scaled latents (b, c, h, w) float32 of pictures (b, 3, h, w) in 0..1, without randomness."""
        ...

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pictures (b, 3, h, w) float32 in 0..1 of scaled latents."""
        ...

    def predict(self, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's output (b, c, h, w) in float32 for noisy latents at noise levels (b,), 0 clean to 1 noise."""
        ...

    def adapted(
        self, pairs: Mapping[str, LayerChange], strength: float | Tensor = 1.0, samples_each: int = 1
    ) -> AbstractContextManager[None]:
        """Run with live adapters, by canonical layer name; see `models.adapted_linear.live`."""
        ...


def check_answer(base: Base, latents: Tensor, t: Tensor, conditioning: Conditioning) -> None:
    """See whether the base alone answers with numbers, for latents (b, c, h, w) at noise levels (b,).

    Raises:
        OutputError: it does not, and why that may be.
    """
    remedy = "an overflow is gone in float32 or bfloat16 (--dtype); otherwise get the checkpoint again"
    with torch.no_grad():
        for part in (conditioning.tokens, conditioning.pooled):
            if part is not None:
                sound(part, f"the text encoder's answer in {_name(part.dtype)}", remedy)
        sound(latents, "what the base is given, from the VAE,", remedy)
        answer = base.predict(latents, t, conditioning)
        sound(answer, f"the base's own answer in {_name(base.dtype)}", remedy, tuple(latents.shape))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def frozen(base: Base) -> Iterator[None]:
    """Evaluation mode and no gradients for the base's own weights; both as they were once the last user has gone.

    Several threads may have a base frozen at once.
    """
    modules = [module for network in base.modules() for module in network.modules()]
    parameters = [parameter for network in base.modules() for parameter in network.parameters()]
    taken: list[nn.Module | nn.Parameter] = []
    try:
        with _FREEZING:
            for module in modules:
                _hold(module, module.training)
                taken.append(module)
                module.training = False
            for parameter in parameters:
                _hold(parameter, parameter.requires_grad)
                taken.append(parameter)
                if parameter.requires_grad:
                    parameter.requires_grad_(False)
        yield
    finally:
        with _FREEZING:
            for what in taken:
                _give_back(what, _let_go(what))


def _give_back(what: nn.Module | nn.Parameter, flag: bool | None) -> None:
    if flag is None:
        return
    if isinstance(what, nn.Module):
        what.training = flag
    elif flag != what.requires_grad:
        # Weights that a host has loaded in inference mode take the flag back only there.
        with torch.inference_mode(what.is_inference()):
            what.requires_grad_(flag)


_FREEZING = threading.Lock()


@dataclass(eq=False)
class _Held:
    """A module or parameter whose flag somebody has switched off."""

    what: nn.Module | Tensor
    """kept, so that its number is not given to another one meanwhile"""
    flag: bool
    """as it was"""
    users: int = 0


_HELD: dict[int, _Held] = {}


def _hold(what: nn.Module | Tensor, flag: bool) -> None:
    _HELD.setdefault(id(what), _Held(what, flag)).users += 1


def _let_go(what: nn.Module | Tensor) -> bool | None:
    """The flag to give back; None while others still use it."""
    held = _HELD[id(what)]
    held.users -= 1
    if held.users:
        return None
    return _HELD.pop(id(what)).flag
