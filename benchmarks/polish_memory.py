"""Memory that a polishing step takes beside the weights, counted and measured, next to what `memory.py` estimates.

    OMP_NUM_THREADS=1 python -m benchmarks.polish_memory [--measure FAMILY:PIXELS:DTYPE[:WORD ...] ...]

Counted: the UNet of a family's true shape runs on torch's meta device, where nothing is computed, and every tensor
that is kept for the gradients is added up, each storage once. So SDXL at 1024 px is counted in seconds, on any machine.
Attention is counted as the fused kernels keep it: query, key, value and output, and no table of all pairs.

Measured: the growth of a fresh process's largest memory from the loaded UNet to the end of two steps, on the CPU of a
Linux machine. Weights that are stored in 8 or 16 bits and computed with in others are cast in each call, as hosts do.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import re
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import MethodType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from hyperdream_core.bases import get_base
from hyperdream_core.models.recomputed import recomputed
from hyperdream_core.pipelines.polishing.denoising_error import Prompts, Samples, add_gradient, personalized, row_errors
from hyperdream_core.pipelines.polishing.memory import Room, bytes_needed
from hyperdream_core.pipelines.polishing.polish import polish
from hyperdream_core.pipelines.polishing.polish_config import PolishConfig
from hyperdream_core.pipelines.polishing.trainable_adapters import TrainableAdapters, without_effect

from .random_bases import EncodedBase, encoded_base

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STORED = {"fp32": torch.float32, "fp16": torch.float16, "fp8": torch.float8_e4m3fn}


@dataclass(frozen=True)
class Case:
    """One way to polish."""

    family: str
    pixels: int
    dtype: str
    """of the numbers that are computed with"""
    recomputes: bool = False
    stored: str = ""
    """dtype of the weights of linear layers and convolutions, where it is another"""
    samples: int = 1
    """at once"""

    @classmethod
    def read(cls, words: str) -> Case:
        """Of the command line."""
        family, pixels, dtype, *rest = words.split(":")
        case = cls(family, int(pixels), dtype)
        for word in rest:
            if word == "recomputed":
                case = replace(case, recomputes=True)
            elif word in STORED:
                case = replace(case, stored=word)
            else:
                case = replace(case, samples=int(word))
        return case


COUNTED = [
    Case(family, pixels, dtype, recomputes)
    for family, sizes in (("sd15", (256, 512)), ("sd2", (768,)), ("sdxl", (512, 1024)))
    for pixels in sizes
    for dtype in ("fp32", "bf16")
    for recomputes in (False, True)
]


class _FusedAttention(torch.autograd.Function):
    """What the fused kernels keep, and their output's shape."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=query.device)
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(one) for one in ctx.saved_tensors[:3])


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    output: Tensor = _FusedAttention.apply(query, key, value)
    return output


class _StoredBase(EncodedBase):
    """A base that computes with other numbers than its weights are."""

    @property
    def dtype(self) -> torch.dtype:
        return self.__dict__["_dtype"]


class _MetaBase(_StoredBase):
    def _random(self, *shape: int) -> Tensor:
        return torch.empty(*shape, device="meta")


@contextmanager
def _kept(weights: set[int], seen: dict[int, Tensor]) -> Iterator[None]:
    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            seen.setdefault(storage._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def estimated(case: Case, device: str) -> float:
    """What the plan counts with (bytes)."""
    family, size = get_base(case.family), DTYPES[case.dtype].itemsize
    cast = 0
    if case.stored:
        unet = encoded_base(family, "meta", DTYPES[case.dtype]).unet
        layers = [layer for layer in unet.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
        cast = sum(layer.weight.numel() * size for layer in layers)
    room = Room(free=0.0, number_size=size, cast_weights=cast, device=device)
    return bytes_needed(family, case.pixels, case.samples, room, case.recomputes)


def counted(case: Case) -> int:
    """Bytes kept for the gradients of one step's forward pass."""
    family, pixels, samples = get_base(case.family), case.pixels, case.samples
    made = encoded_base(family, "meta", DTYPES[case.dtype])
    base = _MetaBase(**vars(made))
    base.__dict__["_dtype"] = DTYPES[case.dtype]
    like = without_effect(family, [None], ("attention", 50, 100))
    adapters = TrainableAdapters(family, like, 4, [None], torch.Generator(), torch.device("meta"))
    side = pixels // family.vae_factor
    latents = torch.empty(1, samples, family.latent_channels, side, side, device="meta")
    batch = Samples(latents, torch.rand(samples), latents, torch.zeros(1, samples, dtype=torch.long))
    prompts = Prompts.encoded(base, ["a sks face"], 1)
    weights = {weight.untyped_storage()._cdata for weight in base.unet.parameters()}
    seen: dict[int, Tensor] = {}
    with patch("torch.nn.functional.scaled_dot_product_attention", _attention):
        inner = recomputed(base.unet) if case.recomputes else nullcontext()
        with _kept(weights, seen), inner, personalized(base, adapters, prompts, samples) as conditioning:
            errors = row_errors(base, conditioning, batch)
    assert errors.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


class _Allocated(TorchDispatchMode):
    """Bytes that tensors take at once, each storage once, whatever device they are on."""

    def __init__(self, weights: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = {weight.untyped_storage()._cdata for weight in weights.parameters()}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, results)
        return results

    def _see(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._seen and tensor.device.type == "meta":
            self._seen.add(key)
            size = storage.nbytes()
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key, size)
        return tensor

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def simulated(case: Case) -> int:
    """The largest memory (bytes) beside the weights that the tensors of one step take at once."""
    family, samples = get_base(case.family), case.samples
    made = encoded_base(family, "meta", DTYPES[case.dtype])
    base = _MetaBase(**vars(made))
    base.__dict__["_dtype"] = DTYPES[case.dtype]
    if case.stored:
        store(base.unet, STORED[case.stored])
    like = without_effect(family, [None], ("attention", 50, 100))
    side = case.pixels // family.vae_factor
    latents = torch.empty(1, samples, family.latent_channels, side, side, device="meta")
    batch = Samples(latents, torch.rand(samples), latents, torch.zeros(1, samples, dtype=torch.long))
    prompts = Prompts.encoded(base, ["a sks face"], 1)
    with patch("torch.nn.functional.scaled_dot_product_attention", _attention), _Allocated(base.unet) as allocated:
        adapters = TrainableAdapters(family, like, 4, [None], torch.Generator(), torch.device("meta"))
        optimizer = torch.optim.AdamW(adapters.parameters(), foreach=False)
        for _ in range(2):
            with recomputed(base.unet) if case.recomputes else nullcontext():
                add_gradient(base, adapters, prompts, batch, 1.0, samples)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return allocated.peak


def measured(case: Case) -> tuple[int, float]:
    """Growth of the largest memory (bytes) of a process of its own, and the seconds of a step."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measure, (case,))


def _measure(case: Case) -> tuple[int, float]:
    made = encoded_base(get_base(case.family), "cpu", DTYPES[case.dtype])
    base = _StoredBase(**vars(made))
    base.__dict__["_dtype"] = DTYPES[case.dtype]
    if case.stored:
        store(base.unet, STORED[case.stored])
    config = PolishConfig(
        steps=2, batch=case.samples, samples_at_once=case.samples, preserve=0, crops=0, learning_rate=1e-4
    )
    gc.collect()
    before, began = forget_peak(), time.perf_counter()
    with recomputed(base.unet) if case.recomputes else nullcontext():
        polish(base, torch.zeros(1, 3, case.pixels, case.pixels), None, config)
    return peak() - before, (time.perf_counter() - began) / config.steps


def store(unet: nn.Module, dtype: torch.dtype) -> None:
    """Keep the weights in another dtype and cast them in each call, as the hosts do."""
    for layer in unet.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.weight.data = layer.weight.data.to(dtype)
            layer.forward = MethodType(_casting, layer)


def _casting(layer: Any, x: Tensor) -> Tensor:
    weight = layer.weight.to(x.dtype)
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight, layer.bias)
    return nn.functional.conv2d(x, weight, layer.bias, layer.stride, layer.padding)


def forget_peak() -> int:
    """Memory that is resident now (bytes); the largest is counted anew from here."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """The largest memory that was resident (bytes)."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--measure", nargs="*", default=[], metavar="CASE", help="FAMILY:PIXELS:DTYPE, and :fp16, :fp8 (stored so), "
        ":recomputed or :2 (samples) after it"
    )  # fmt: skip
    parser.add_argument("--no-count", action="store_true")
    arguments = parser.parse_args()
    if not arguments.no_count:
        _print("counted", COUNTED)
    if arguments.measure:
        _print("measured", [Case.read(words) for words in arguments.measure])


def _print(how: str, cases: Sequence[Case]) -> None:
    print(
        f"| family | px | numbers | stored | samples | recomputed | {how}, GB | estimated, GB | estimate / {how} | s |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for case in cases:
        found, seconds = measured(case) if how == "measured" else (counted(case), 0.0)
        guess = estimated(case, "cpu" if how == "measured" else "cuda")
        print(
            f"| {case.family} | {case.pixels} | {case.dtype} | {case.stored or case.dtype} | {case.samples} "
            f"| {'yes' if case.recomputes else 'no'} | {found / 1e9:.2f} | {guess / 1e9:.2f} | {guess / found:.2f} "
            f"| {seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
