"""Seconds to expand an identity for all layers of a base, auxiliary bases included, next to reading its file.

Every round takes two fresh processes, so that no basis is cached, and leaves out the time to import: one expands an
identity that is already in memory (`expand, cold`) and does it once more (`again`), the other reads a file with all of
its checks and expands that (`read`, `read and expand`). The table has medians and minima over the rounds and the ratio
to reading; peak memory is each process's own, next to one that only made the identity.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from hyperdream_core.bases import BASES, TARGET_SETS, get_base
from hyperdream_core.formats.identity_file import read_identity, write_identity
from hyperdream_core.identity import Identity
from hyperdream_core.ops.lidb import LidbCoefficients, basis_sizes

Measured = dict[str, tuple[float, float]]
"""What was done -> its seconds, and the peak MB of the process after it."""


def random_identity(family: str, target_set: str, rank: int) -> Identity:
    """An identity of nobody."""
    generator, coefficients = torch.Generator().manual_seed(0), {}
    for layer in get_base(family).layers(target_set):
        p, a = basis_sizes(layer.in_features, layer.out_features)
        down, up = torch.randn(rank, p, generator=generator), torch.randn(a, rank, generator=generator)
        coefficients[layer.name] = LidbCoefficients(down, up)
    return Identity(family=family, target_set=target_set, rank=rank, coefficients=coefficients)


def expand_from_memory(family: str, target_set: str, rank: int) -> Measured:
    """Run in a fresh process."""
    identity = random_identity(family, target_set, rank)
    idle = (0.0, peak_megabytes())
    began = time.perf_counter()
    identity.expand()
    cold = time.perf_counter(), peak_megabytes()
    identity.expand()
    again = time.perf_counter()
    return {"idle": idle, "expand, cold": (cold[0] - began, cold[1]), "again": (again - cold[0], peak_megabytes())}


def expand_from_file(path: Path) -> Measured:
    """Run in a fresh process."""
    began = time.perf_counter()
    identity = read_identity(path)
    read = time.perf_counter() - began, peak_megabytes()
    identity.expand()
    return {"read": read, "read and expand": (time.perf_counter() - began, peak_megabytes())}


def peak_megabytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3  # bytes there, KB elsewhere


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds to expand an identity, next to reading its file.")
    parser.add_argument("--base", choices=sorted(BASES), default="sdxl", help="whose layers (default: sdxl)")
    parser.add_argument("--target-set", choices=TARGET_SETS, default="attention", help="(default: attention)")
    parser.add_argument("--rank", type=int, default=1, help="of the identity (default: 1)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU (default: torch's choice)")
    arguments = parser.parse_args()
    threads = arguments.threads or torch.get_num_threads()
    what = (arguments.base, arguments.target_set, arguments.rank)
    rounds: list[Measured] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nobody.safetensors"
        write_identity(path, random_identity(*what))
        size = path.stat().st_size
        for _ in range(arguments.rounds):
            measured: Measured = {}
            for run, given in ((expand_from_memory, what), (expand_from_file, (path,))):
                with multiprocessing.get_context("spawn").Pool(1, torch.set_num_threads, (threads,)) as pool:
                    measured |= pool.apply(run, given)
            rounds.append(measured)
    layers = len(get_base(arguments.base).layers(arguments.target_set))
    print(f"{arguments.base}, {arguments.target_set}, {layers} layers, rank {arguments.rank}, ", end="")
    print(f"file of {size / 1e3:.0f} KB, {threads} threads: {arguments.rounds} rounds")
    print(f"{'':16}{'median s':>10}{'min s':>8}{'x read':>8}{'peak MB':>9}{'over idle':>11}")
    idle = median(measured["idle"][1] for measured in rounds)
    read = median(measured["read"][0] for measured in rounds)
    for name in ("expand, cold", "again", "read", "read and expand"):
        seconds, peaks = zip(*(measured[name] for measured in rounds), strict=True)
        middle, peak = median(seconds), median(peaks)
        print(f"{name:16}{middle:10.3f}{min(seconds):8.3f}{middle / read:8.2f}{peak:9.0f}{peak - idle:11.0f}")


if __name__ == "__main__":
    main()
