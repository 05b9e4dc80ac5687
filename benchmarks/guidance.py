"""Hybrid guidance next to plain guidance: one step of the UNet with two, three and four branches, and whole runs.

The kinds take turns in every round on one base with random weights, so that each ratio is of one moment of the machine:
`plain` has two personalised branches, `base` two without an adapter, `hybrid` three and `blend` four in one call.
`two calls` is hybrid without the one batch: the base's two branches, then the personalised one. Whole runs denoise from
noise, with constant dials and with the default schedule, whose third branch is evaluated in its noisy half only.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from benchmarks.expand import random_identity
from benchmarks.random_bases import EncodedBase, encoded_base
from hyperdream_core.bases import get_base
from hyperdream_core.ops.lowrank import LoraPair
from hyperdream_core.pipelines.drawing.draw import DrawConfig
from hyperdream_core.pipelines.drawing.guided_step import Guidance
from hyperdream_core.pipelines.drawing.one_call import PartPredictions
from hyperdream_core.pipelines.drawing.samplers import denoise, initial_noise
from hyperdream_core.pipelines.drawing.subjects import resolve

PROMPT = "a sks face, smiling"
SETTINGS = {
    "plain": DrawConfig(guidance="plain"),
    "base": DrawConfig(strength=0.0),
    "hybrid": DrawConfig(guidance="hybrid", subject_scale=2.0),
    "blend": DrawConfig(guidance="blend", subject_scale=0.5),
    "scheduled": DrawConfig(guidance="hybrid", schedule="default"),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured."""

    family: str
    pixels: int
    pictures: int
    rounds: int
    runs: int
    steps: int
    rank: int
    clock: str = "wall"
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    @property
    def title(self) -> str:
        return (
            f"{self.family}, {self.pixels} px, {self.pictures} pictures, rank {self.rank}, {self.device}, "
            f"{str(self.dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads"
        )

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if self.clock == "cpu" else time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds of hybrid guidance against plain guidance.")
    parser.add_argument("--base", choices=("miniature", "sd15", "both"), default="both", help="shape of the UNet")
    parser.add_argument("--rounds", type=int, default=20, help="steps of each kind on the miniature (default: 20)")
    parser.add_argument("--sd15-rounds", type=int, default=3, help="the same on SD 1.5's shape (default: 3)")
    parser.add_argument("--sd15-pixels", type=int, default=256, help="side of its pictures on a CPU (default: 256 px)")
    parser.add_argument("--runs", type=int, default=3, help="whole runs of each kind; 0 leaves them out (default: 3)")
    parser.add_argument("--steps", type=int, default=20, help="of a run (default: 20; on SD 1.5's shape on a CPU: 10)")
    parser.add_argument("--rank", type=int, default=4, help="of the adapter (default: 4)")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU (default: torch's choice)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a busy machine, one thread")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    shared = {"rank": arguments.rank, "runs": arguments.runs, "clock": arguments.clock}
    large = {**shared, "runs": min(1, arguments.runs), "steps": min(10, arguments.steps)}
    cases = [
        Case(family="miniature", pixels=64, pictures=4, rounds=arguments.rounds, steps=arguments.steps, **shared),
        Case(family="sd15", pixels=arguments.sd15_pixels, pictures=1, rounds=arguments.sd15_rounds, **large),
    ]
    if torch.cuda.is_available():
        on_cuda = {**shared, "steps": arguments.steps, "device": "cuda", "dtype": torch.bfloat16}
        cases.append(Case(family="sd15", pixels=512, pictures=4, rounds=arguments.rounds, **on_cuda))
    for case in cases:
        if arguments.base in ("both", case.family):
            with torch.no_grad():
                measure(case)


def measure(case: Case) -> None:
    """Measure one case and print its tables."""
    base = encoded_base(get_base(case.family), case.device, case.dtype)
    adapter = random_adapter(case)
    kinds = {name: new_step(base, case, adapter, config) for name, config in SETTINGS.items()}
    latents = initial_noise(base, range(case.pictures), case.pixels)
    # In the noisy half, where the default schedule mixes all branches.
    t = torch.tensor([0.65])
    steps: dict[str, Callable[[], object]] = {
        name: lambda one=one: one(latents, t)  # type: ignore[misc]
        for name, one in kinds.items()
        if name != "scheduled"
    }
    alone = new_step(base, case, adapter, DrawConfig(guidance_scale=1.0))
    steps["two calls"] = lambda: (kinds["base"](latents, t), alone(latents, t))
    print(f"\n{case.title}: one step, {case.rounds} rounds")
    print_table(take_turns(case, steps, case.rounds))
    if case.runs:
        runs: dict[str, Callable[[], object]] = {
            name: lambda one=kinds[name]: denoise(base.noise, "dpm++", case.steps, latents, one)  # type: ignore[misc]
            for name in ("plain", "hybrid", "scheduled")
        }
        print(f"\n{case.title}: {case.steps} steps, {case.runs} runs")
        print_table(take_turns(case, runs, case.runs))


def take_turns(case: Case, kinds: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each kind in each round, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for index in range(rounds + 1):
        for name, run in kinds.items():
            began = case.now()
            run()
            if index:
                seconds[name].append(case.now() - began)
    return seconds


def print_table(seconds: dict[str, list[float]]) -> None:
    """Medians and minima, and the ratio to plain guidance."""
    print(f"{'':10}{'median ms':>11}{'min ms':>9}{'x plain':>9}{'(min)':>8}")
    for name, mine in seconds.items():
        rounds = median(one / two for one, two in zip(mine, seconds["plain"], strict=True))
        ratio = f"({min(mine) / min(seconds['plain']):.3f})"
        print(f"{name:10}{1e3 * median(mine):11.1f}{1e3 * min(mine):9.1f}{rounds:9.3f}{ratio:>8}", flush=True)


def new_step(
    base: EncodedBase, case: Case, adapter: dict[str, LoraPair], config: DrawConfig
) -> Callable[[Tensor, Tensor], Tensor]:
    """The guided clean samples of latents at a noise level; prompts are encoded in the first step."""
    guidance = Guidance(config, resolve(base.family, adapter, config, case.pictures))
    predictions = PartPredictions(base, [PROMPT] * case.pictures, "", ["sks"])

    def guided(latents: Tensor, t: Tensor) -> Tensor:
        step = guidance.step(float(t), config.guidance_scale, latents.device)
        return step.guided(latents, lambda parts: predictions.clean(parts, latents, t))

    return guided


def random_adapter(case: Case) -> dict[str, LoraPair]:
    """Small enough that nothing overflows."""
    pairs = random_identity(case.family, "attention", case.rank).expand()
    return {name: LoraPair(pair.down.to(case.device), (1e-3 * pair.up).to(case.device)) for name, pair in pairs.items()}


if __name__ == "__main__":
    main()
