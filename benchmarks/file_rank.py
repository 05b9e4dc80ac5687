"""What the largest rank of an identity's file costs: bytes of true shapes, and likeness on the miniature's people.

    python -m benchmarks.file_rank [--people 32 --methods scratch+40 prediction+40]

Bytes are those of files of random numbers, which depend on nothing else. With --people each method polishes once, keeps
the whole rank, and is drawn and judged at every rank that its files could be cut to; 0 is the whole.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from hyperdream_core.bases import get_base
from hyperdream_core.bundled import bundled_weights
from hyperdream_core.formats.identity_file import write_identity
from hyperdream_core.identity import Identity, truncated
from hyperdream_core.miniature.trial.config import TrialConfig
from hyperdream_core.miniature.trial.trial import Trial, draw_people, identities_of, score_pictures, set_up_trial
from hyperdream_core.ops.lidb import LidbCoefficients, basis_sizes
from hyperdream_core.pipelines.polishing.polish import polish_batch
from hyperdream_core.pipelines.polishing.polish_config import PolishConfig

RANKS = (1, 2, 4, 8)


def file_bytes(family: str, rank: int) -> int:
    """Bytes of a polished identity's file."""
    generator, coefficients = torch.Generator().manual_seed(0), {}
    for layer in get_base(family).layers("attention"):
        p, a = basis_sizes(layer.in_features, layer.out_features, 50, 100)
        sides = torch.randn(rank, p, generator=generator), torch.randn(a, rank, generator=generator)
        coefficients[layer.name] = LidbCoefficients(*sides)
    identity = Identity(family=family, target_set="attention", rank=rank, coefficients=coefficients)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "identity.safetensors"
        write_identity(path, identity, layout="stacked")
        return path.stat().st_size


def judged(trial: Trial, method: str) -> None:
    """Print what the judges say of a method at every rank."""
    kind, _, steps = method.partition("+")
    starts = identities_of(trial, "prediction" if kind == "prediction" else "base")
    config = PolishConfig(steps=int(steps), rank=max(RANKS), file_rank=0)
    if trial.hypernetwork is not None:
        bases = trial.hypernetwork.config
        config = replace(config, down_dim=bases.down_dim, up_dim=bases.up_dim)
    captions = trial.descriptions if trial.config.captions else None
    whole = polish_batch(trial.base, list(trial.references.split(1)), starts, config, captions=captions)
    for rank in (*RANKS, 0):
        cut = [truncated(identity, rank) if rank else identity for identity in whole]
        scores = score_pictures(trial, method, draw_people(trial, cut), 0.0)
        print(f"| {method} | {rank or 'whole'} | {scores.similarity} | {scores.attributes} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=0, help="0 counts bytes only (default: 0)")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--methods", nargs="+", default=["scratch+40", "prediction+40"], metavar="START+STEPS")
    given = parser.parse_args()
    print("| base | " + " | ".join(f"rank {rank}, bytes" for rank in RANKS) + " |")
    print("| --- " * (len(RANKS) + 1) + "|")
    for family in ("miniature", "sd15", "sdxl"):
        print(f"| {family} | " + " | ".join(f"{file_bytes(family, rank):,}" for rank in RANKS) + " |", flush=True)
    if given.people:
        config = TrialConfig(people=given.people, prompts=given.prompts, methods=("base",))
        trial = set_up_trial(config, bundled_weights() / "miniature")
        print("\n| method | rank | similarity | attributes |\n| --- | --- | --- | --- |")
        for method in given.methods:
            judged(trial, method)


if __name__ == "__main__":
    main()
