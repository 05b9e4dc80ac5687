"""Seconds and memory of a polishing step, next to PEFT's LoRA and to the frozen UNet alone.

On one diffusers UNet with random weights, on equal latents, prompts, loss and AdamW settings:

- `ours`: a step of `pipelines.polishing.polish`, timed from within, between two calls of its `progress`. All of it
  counts: drawing noise, folding LiDB coefficients, forward, loss, backward, optimiser.
- `peft`: the same linears with LoRA of the same rank by `unet.add_adapter(peft.LoraConfig(...))`: forward, loss,
  backward, optimiser. Its noise is drawn beforehand.
- `plain`: forward and backward of the frozen UNet down to its input latents, nothing trained.

The three take turns, so that whatever else the machine does falls on all alike. Ratios are medians of the rounds' own
ratios, then ratios of the fastest. Peak memory is that of a process which does only the one thing; `idle` is one that
only holds the UNet.

Where there is a CUDA device, 512 px in bf16 are measured too, and the seconds from picture to polished identity.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor

from hyperdream_core.bases import get_base
from hyperdream_core.identity import Identity
from hyperdream_core.ops.lidb import LidbCoefficients, basis_sizes
from hyperdream_core.pipelines.diffusers.diffusers_base import DiffusersBase
from hyperdream_core.pipelines.polishing.polish import polish
from hyperdream_core.pipelines.polishing.polish_config import PolishConfig
from hyperdream_core.pipelines.predictors.predict import predict_identity

from .random_bases import EncodedBase, encoded_base, new_hypernetwork, whole_base

LEARNING_RATE = 1e-4
"""Small: with random weights a usual rate would end in numbers that are not finite, and those take other times."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured."""

    family: str
    pixels: int
    batch: int
    steps: int
    rank: int
    start_rank: int = 0
    """Rank of a prediction that ours, and only ours, runs besides."""
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    clock: str = "wall"

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() if self.clock == "wall" else time.process_time()

    @property
    def title(self) -> str:
        device = torch.cuda.get_device_name() if self.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        start = f" on a prediction of rank {self.start_rank}" if self.start_rank else ""
        kind = str(self.dtype).removeprefix("torch.")
        return (
            f"{self.family}, {self.pixels} px, batch {self.batch}, rank {self.rank}{start}, {kind}, {device}: "
            f"{self.steps} rounds, {self.clock} time"
        )


def run_ours(base: DiffusersBase, case: Case, between_steps: Callable[[int, int], None], steps: int) -> None:
    """Polish for `steps` steps."""
    config = PolishConfig(
        steps=steps,
        rank=case.rank,
        batch=case.batch,
        crops=0,
        learning_rate=LEARNING_RATE,
        save_every=steps,
        preserve=0.0,
        samples_at_once=case.batch,
    )
    picture = torch.zeros(1, 3, case.pixels, case.pixels)
    polish(base, picture, _random_start(case) if case.start_rank else None, config, between_steps)


def peft_step(base: EncodedBase, case: Case) -> Callable[[], None]:
    """One step of training PEFT's LoRA; the UNet's modules are copied for it, its weights are shared."""
    from peft import LoraConfig

    weights = {id(parameter): parameter for parameter in base.unet.parameters()}
    unet = copy.deepcopy(base.unet, weights)
    targets = [layer.name for layer in base.family.layers("attention")]
    unet.add_adapter(
        LoraConfig(r=case.rank, lora_alpha=case.rank, init_lora_weights="gaussian", target_modules=targets)
    )
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    assert len(trained) == 2 * len(targets), "PEFT adapts other layers"
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    adapted = replace(base, unet=unet)
    noisy, t, wanted = _batch(base, case)
    conditioning = base.encode_prompt(["a sks face"]).repeat_each(case.batch)

    def step() -> None:
        loss = (adapted.predict(noisy, t, conditioning) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def plain_step(base: EncodedBase, case: Case) -> Callable[[], None]:
    """One forward and backward of the UNet as it is."""
    noisy, t, wanted = _batch(base, case)
    noisy.requires_grad_()
    conditioning = base.encode_prompt(["a sks face"]).repeat_each(case.batch)

    def step() -> None:
        (base.predict(noisy, t, conditioning) - wanted).square().mean().backward()
        noisy.grad = None

    return step


def measure_seconds(case: Case) -> dict[str, list[float]]:
    """Seconds of every step of each, in turns; a first turn of each is left out."""
    base = _base(case)
    others = {"peft": peft_step(base, case), "plain": plain_step(base, case)}
    seconds: dict[str, list[float]] = {"ours": [], **{name: [] for name in others}}
    resumed = case.now()

    def between_steps(step: int, total: int) -> None:
        nonlocal resumed
        seconds["ours"].append(case.now() - resumed)
        for name, run in others.items():
            began = case.now()
            run()
            seconds[name].append(case.now() - began)
        resumed = case.now()

    run_ours(base, case, between_steps, case.steps + 1)
    # The first call of `progress` comes before the first step.
    return {name: measured[2:] for name, measured in seconds.items()}


def measure_memory(case: Case, what: str) -> float:
    """Peak MB of this process (on CUDA, of the device) after three steps of one kind."""
    base = _base(case)
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()  # the weights were float32 at first
    if what == "ours":
        run_ours(base, case, lambda step, total: None, 3)
    elif what != "idle":
        step = peft_step(base, case) if what == "peft" else plain_step(base, case)
        for _ in range(3):
            step()
    if case.device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3  # bytes there, KB elsewhere


def in_own_process(case: Case, what: str) -> float:
    # Started before this process grows: a new process inherits its parent's peak.
    with multiprocessing.get_context("spawn").Pool(1, torch.set_num_threads, (torch.get_num_threads(),)) as pool:
        return pool.apply(measure_memory, (case, what))


def print_table(case: Case, memory: bool) -> None:
    """Measure one case and print its table."""
    kinds = ("ours", "peft", "plain", "idle")
    peaks = {what: in_own_process(case, what) for what in kinds} if memory else {}
    seconds = measure_seconds(case)
    print(f"\n{case.title}")
    print(f"{'':6}{'median ms':>11}{'min ms':>9}{'x peft':>9}{'(min)':>8}{'x plain':>9}{'(min)':>8}", end="")
    print(f"{'peak MB':>9}{'over idle':>11}{'x peft':>8}" if memory else "")
    for what in kinds if memory else kinds[:3]:
        line = f"{what:6}"
        if what in seconds:
            mine = seconds[what]
            line += f"{1e3 * median(mine):11.1f}{1e3 * min(mine):9.1f}"
            for other, width in ((seconds["peft"], 9), (seconds["plain"], 9)):
                rounds = median(one / two for one, two in zip(mine, other, strict=True))
                line += f"{rounds:{width}.3f}{f'({min(mine) / min(other):.3f})':>8}"
        else:
            line += " " * 54
        if memory:
            line += f"{peaks[what]:9.0f}{peaks[what] - peaks['idle']:11.0f}{peaks[what] / peaks['peft']:8.3f}"
        print(line, flush=True)


def print_identity_seconds(case: Case) -> None:
    """Seconds from a picture to its predicted and to its polished identity, the second time of two."""
    base = whole_base(get_base(case.family), case.device, case.dtype)
    hypernetwork = new_hypernetwork(base.family, case.device, case.dtype)
    picture = torch.rand(1, 3, case.pixels, case.pixels, generator=torch.Generator().manual_seed(0))
    config = PolishConfig(rank=case.rank, batch=case.batch, learning_rate=LEARNING_RATE)
    for _ in range(2):
        began = case.now()
        predicted = predict_identity(hypernetwork, picture)
        after_prediction = case.now()
        polish(base, picture, predicted, config)
        done = case.now()
    print(f"\n{replace(case, steps=config.steps, start_rank=1).title.replace('rounds', 'steps')}")
    print(f"picture to predicted identity {after_prediction - began:.2f} s, to polished identity {done - began:.2f} s")


def _base(case: Case) -> EncodedBase:
    return encoded_base(get_base(case.family), case.device, case.dtype)


def _batch(base: EncodedBase, case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents (b, c, h, w), noise levels (b,) and what is to be predicted."""
    clean = base.encode_image(torch.zeros(case.batch, 3, case.pixels, case.pixels))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1)).to(clean)
    t = torch.linspace(0.2, 0.9, case.batch)
    return base.noise.noisy(clean, noise, t), t, base.noise.target(clean, noise, t)


def _random_start(case: Case) -> Identity:
    generator, coefficients = torch.Generator().manual_seed(2), {}
    for layer in get_base(case.family).layers("attention"):
        p, a = basis_sizes(layer.in_features, layer.out_features)
        down, up = torch.randn(case.start_rank, p, generator=generator), torch.randn(a, case.start_rank)
        coefficients[layer.name] = LidbCoefficients(down / p**0.5, 1e-3 * up)
    return Identity(family=case.family, target_set="attention", rank=case.start_rank, coefficients=coefficients)


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds and memory of a polishing step against PEFT's LoRA.")
    parser.add_argument("--base", choices=("miniature", "sd15", "both"), default="both", help="shape of the UNet")
    parser.add_argument("--rounds", type=int, default=20, help="steps of each kind on the miniature (default: 20)")
    parser.add_argument("--sd15-rounds", type=int, default=3, help="the same on SD 1.5's shape (default: 3)")
    parser.add_argument("--rank", type=int, default=4, help="of both adapters (default: 4)")
    parser.add_argument("--start-rank", type=int, default=0, help="of a prediction below ours (default: 0, none)")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU (default: torch's choice)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a busy machine, one thread")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory, which takes four processes")
    parser.add_argument("--no-identity", action="store_true", help="leave out the seconds from picture to identity")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    shared = {"rank": arguments.rank, "start_rank": arguments.start_rank, "clock": arguments.clock}
    cases = [
        Case(family="miniature", pixels=64, batch=4, steps=arguments.rounds, **shared),
        Case(family="sd15", pixels=256, batch=1, steps=arguments.sd15_rounds, **shared),
    ]
    if torch.cuda.is_available():
        on_cuda = {**shared, "device": "cuda", "dtype": torch.bfloat16}
        cases.append(Case(family="sd15", pixels=512, batch=4, steps=arguments.rounds, **on_cuda))
    chosen = [case for case in cases if arguments.base in ("both", case.family)]
    for case in chosen:
        print_table(case, not arguments.no_memory)
    for case in chosen:
        if not arguments.no_identity and (case.family == "miniature" or case.device == "cuda"):
            print_identity_seconds(case)


if __name__ == "__main__":
    main()
