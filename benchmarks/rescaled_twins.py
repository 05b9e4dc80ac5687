"""Twins of the miniature that compute the same pictures from weights of another size, and what polishing makes of them.

In every attention of a twin, queries and values come out c times as large, and keys and what the output projection
weighs 1 / c times: every picture is as before, up to rounding. An artist sees no difference, so polishing must not
either. With the steps of 0.1.0, `--rate-unit coefficient --learning-rate 0.012`, it does.

    python -m benchmarks.rescaled_twins --people 32 --methods scratch+40 prediction+40
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from hyperdream_core.bundled import bundled_weights
from hyperdream_core.identity import Identity
from hyperdream_core.miniature.trial.config import TrialConfig
from hyperdream_core.miniature.trial.trial import Trial, draw_people, identities_of, score_pictures, set_up_trial
from hyperdream_core.ops import lidb
from hyperdream_core.pipelines.diffusers.diffusers_base import DiffusersBase
from hyperdream_core.pipelines.polishing.polish import polish_batch
from hyperdream_core.pipelines.polishing.polish_config import PolishConfig

SIDES = (("to_q", "to_k"), ("to_v", "to_out.0"))
"""In each pair of an attention's layers, what the first gains the second gives back."""
TWINS = ("1", "1/8", "8", "drawn")


def factors_of(base: DiffusersBase, which: str) -> dict[str, float]:
    """Layer of the UNet -> what its weight is multiplied by; `drawn` draws c between 1/8 and 8 for each pair."""
    generator = torch.Generator().manual_seed(0)
    names = [name for name, _ in base.unet.named_modules() if name.rpartition(".")[2] in ("attn1", "attn2")]
    factors: dict[str, float] = {}
    for attention in names:
        for gains, gives in SIDES:
            drawn = 8.0 ** (2 * float(torch.rand((), generator=generator)) - 1)
            c = {"1": 1.0, "1/8": 0.125, "8": 8.0, "drawn": drawn}[which]
            factors |= {f"{attention}.{gains}": c, f"{attention}.{gives}": 1 / c}
    return factors


@torch.no_grad()
def twin(base: DiffusersBase, factors: Mapping[str, float]) -> DiffusersBase:
    """A base with other weights and the same pictures; the given one stays as it is."""
    unet = copy.deepcopy(base.unet)
    layers = dict(unet.named_modules())
    for name, factor in factors.items():
        layers[name].weight.mul_(factor)
        # What leaves the output projection is as large as before, and so is its bias.
        if layers[name].bias is not None and not name.endswith("to_out.0"):
            layers[name].bias.mul_(factor)
    return replace(base, unet=unet)


def transported(identity: Identity, factors: Mapping[str, float]) -> Identity:
    """The identity that does to the twin what the given one does to the base."""
    coefficients = {name: lidb.scale(one, factors[name]) for name, one in identity.coefficients.items()}
    return replace(identity, coefficients=coefficients)


def polished(
    trial: Trial, starts: Sequence[Identity | None], factors: Mapping[str, float], config: PolishConfig
) -> list[Identity]:
    """The people's identities, polished on the twin and brought back to the base."""
    begun = [None if start is None else transported(start, factors) for start in starts]
    there = twin(trial.base, factors)  # type: ignore[arg-type]
    captions = trial.descriptions if trial.config.captions else None
    identities = polish_batch(there, list(trial.references.split(1)), begun, config, captions=captions)
    back = {name: 1 / factor for name, factor in factors.items()}
    return [transported(identity, back) for identity in identities]


def measure(trial: Trial, method: str, which: str, config: PolishConfig) -> dict[str, float]:
    """What the judges say of a method on one twin."""
    kind, _, steps = method.partition("+")
    starts = identities_of(trial, "prediction" if kind == "prediction" else "base")
    config = replace(config, steps=int(steps))
    if trial.hypernetwork is not None:
        bases = trial.hypernetwork.config
        config = replace(config, down_dim=bases.down_dim, up_dim=bases.up_dim)
    identities = polished(trial, starts, factors_of(trial.base, which), config)  # type: ignore[arg-type]
    scores = score_pictures(trial, method, draw_people(trial, identities), 0.0)
    return {"similarity": scores.similarity.mean, "attributes": scores.attributes.mean}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--population", default="test", choices=("test", "validation"))
    parser.add_argument("--methods", nargs="+", default=["scratch+40", "prediction+40"], metavar="START+STEPS")
    parser.add_argument("--twins", nargs="+", default=list(TWINS), choices=TWINS)
    parser.add_argument("--rate-unit", default=PolishConfig.rate_unit, choices=("output", "coefficient"))
    parser.add_argument("--learning-rate", type=float, default=PolishConfig.learning_rate)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    config = PolishConfig(rate_unit=given.rate_unit, learning_rate=given.learning_rate)
    trial = set_up_trial(
        TrialConfig(people=given.people, prompts=given.prompts, methods=("base",), population=given.population),
        bundled_weights() / "miniature",
    )
    rows = []
    for method in given.methods:
        for which in given.twins:
            rows.append({"method": method, "c": which, **measure(trial, method, which, config)})
            print(_line(rows[-1], rows), flush=True)
    if given.json:
        given.json.write_text(json.dumps({"config": vars(given) | {"json": None}, "rows": rows}, indent=1) + "\n")


def _line(row: Mapping[str, object], rows: Sequence[Mapping[str, object]]) -> str:
    first = next(one for one in rows if one["method"] == row["method"])
    parts = [f"{row['method']:>14}  c = {row['c']:<6}"]
    for name in ("similarity", "attributes"):
        parts.append(f"{name} {row[name]:.3f} ({float(row[name]) - float(first[name]):+.3f})")  # type: ignore[arg-type]
    return "  ".join(parts)


if __name__ == "__main__":
    main()
