"""Memory that a polishing step takes beside the weights, counted and measured, next to what `memory.py` estimates.

    OMP_NUM_THREADS=1 python -m benchmarks.polish_memory [--measure FAMILY:PIXELS:DTYPE ...]

Counted: the UNet of a family's true shape runs on torch's meta device, where nothing is computed, and every tensor
that is kept for the gradients is added up, each storage once. So SDXL at 1024 px is counted in seconds, on any machine.
Attention is counted as the fused kernels keep it: query, key, value and output, and no table of all pairs.

Measured: the growth of a fresh process's largest memory from the loaded UNet to the end of two steps, on the CPU.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from hyperdream_core.bases import get_base
from hyperdream_core.models.recomputed import recomputed
from hyperdream_core.pipelines.polishing.denoising_error import Prompts, Samples, personalized, row_errors
from hyperdream_core.pipelines.polishing.memory import Room, bytes_needed
from hyperdream_core.pipelines.polishing.polish import polish
from hyperdream_core.pipelines.polishing.polish_config import PolishConfig
from hyperdream_core.pipelines.polishing.trainable_adapters import TrainableAdapters, without_effect

from .random_bases import EncodedBase, encoded_base

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CASES = [
    (family, pixels, dtype, recomputes)
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


class _MetaBase(EncodedBase):
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


def counted(family_name: str, pixels: int, dtype: torch.dtype, recomputes: bool, samples: int = 1) -> int:
    """Bytes kept for the gradients of one step's forward pass."""
    family = get_base(family_name)
    made = encoded_base(family, "meta", dtype)
    base = _MetaBase(**vars(made))
    like = without_effect(family, [None], ("attention", 50, 100))
    adapters = TrainableAdapters(family, like, 4, [None], torch.Generator(), torch.device("meta"))
    side = pixels // family.vae_factor
    latents = torch.empty(1, samples, family.latent_channels, side, side, device="meta")
    batch = Samples(latents, torch.rand(samples), latents, torch.zeros(1, samples, dtype=torch.long))
    prompts = Prompts.encoded(base, ["a sks face"], 1)
    weights = {weight.untyped_storage()._cdata for weight in base.unet.parameters()}
    seen: dict[int, Tensor] = {}
    with patch("torch.nn.functional.scaled_dot_product_attention", _attention):
        inner = recomputed(base.unet) if recomputes else nullcontext()
        with _kept(weights, seen), inner, personalized(base, adapters, prompts, samples) as conditioning:
            errors = row_errors(base, conditioning, batch)
    assert errors.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


def measured(family: str, pixels: int, dtype: torch.dtype, recomputes: bool, samples: int = 1) -> int:
    """Growth of the largest memory (bytes) of a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measure, (family, pixels, dtype, recomputes, samples))


def _measure(family_name: str, pixels: int, dtype: torch.dtype, recomputes: bool, samples: int) -> int:
    base = encoded_base(get_base(family_name), "cpu", dtype)
    before = _peak()
    config = PolishConfig(steps=2, batch=samples, samples_at_once=samples, preserve=0, crops=0, learning_rate=1e-4)
    with recomputed(base.unet) if recomputes else nullcontext():
        polish(base, torch.zeros(1, 3, pixels, pixels), None, config)
    return _peak() - before


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs="*", default=[], metavar="FAMILY:PIXELS:DTYPE[:recomputed]")
    parser.add_argument("--no-count", action="store_true")
    arguments = parser.parse_args()
    if not arguments.no_count:
        _table("counted", CASES, counted)
    words = [one.split(":") for one in arguments.measure]
    cases = [(family, int(pixels), dtype, bool(rest)) for family, pixels, dtype, *rest in words]
    if cases:
        _table("measured", cases, measured)


def _table(how: str, cases: list[Any], function: Callable[..., int]) -> None:
    print(f"| family | px | numbers | recomputed | {how}, GB a sample | estimated, GB | estimate / {how} |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for family, pixels, dtype, recomputes in cases:
        found = function(family, pixels, DTYPES[dtype], recomputes)
        device = "cpu" if how == "measured" else "cuda"
        room = Room(free=0.0, number_size=torch.finfo(DTYPES[dtype]).bits // 8, device=device)
        guess = bytes_needed(get_base(family), pixels, 1, room, recomputes)
        print(
            f"| {family} | {pixels} | {dtype} | {'yes' if recomputes else 'no'} | {found / 1e9:.2f} "
            f"| {guess / 1e9:.2f} | {guess / found:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
