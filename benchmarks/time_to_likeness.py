"""Processor seconds from a picture to a likeness, on the miniature's unseen people: ours, PEFT's LoRA, LiDB.

Every method makes each person once, its run is looked at after a grid of steps, and each look is drawn in contexts of
its own and judged: how similar, and whether the prompt is still followed. Looking is not in the seconds. A method has
reached a likeness at the first look whose similarity, averaged over the people, is there while enough attributes are
right. Its seconds are those of that look, averaged over the people.

- `ours, predicted` and `ours, scratch`: `polish` with its default settings; the prediction is in the seconds, and so
  is the reading of the caption, for all methods.
- `peft RATE`: PEFT's LoRA of rank 4 at its usual rate, 1e-4, and at four more; the best is chosen on these very people.
- `lidb RATE`: rank 1 and a constant rate, as published.

The ratios at the end are of the seconds to PEFT's best. Take one thread: processor time of several counts their
waiting.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch

from benchmarks.likeness_rivals import Checkpoint, Clock, Settings, train_lidb, train_peft
from hyperdream_core.bundled import bundled_weights
from hyperdream_core.identity import Identity
from hyperdream_core.miniature.trial.config import TrialConfig
from hyperdream_core.miniature.trial.trial import Trial, score_pictures, set_up_trial
from hyperdream_core.miniature.world.captions import IDENTIFIER, describe_references
from hyperdream_core.ops.lowrank import LoraPair
from hyperdream_core.pipelines.drawing.draw import DrawConfig, draw
from hyperdream_core.pipelines.drawing.subjects import Subject
from hyperdream_core.pipelines.polishing.polish import Current, polish
from hyperdream_core.pipelines.polishing.polish_config import PolishConfig
from hyperdream_core.pipelines.predictors.predict import predict_identity

GRID = (0, 5, 10, 15, 20, 30, 40, 60, 80, 100, 150, 200, 300, 400, 500)
USUAL_RATE = 1e-4
"""Of a LoRA of a person: diffusers' `train_dreambooth_lora.py`, and most guides."""

Run = Callable[[Trial, int, Sequence[int]], list[Checkpoint]]
"""Makes the person of a row of the trial and gives what there was at the steps asked for, and at the end."""


@dataclass(frozen=True)
class Look:
    """What one method had reached after a number of steps, on average."""

    step: int
    seconds: float
    similarity: float
    attributes: float


def ours(config: PolishConfig, *, is_predicted: bool) -> Run:
    """Polishing as the command line does it."""

    def run(trial: Trial, row: int, at: Sequence[int]) -> list[Checkpoint]:
        clock, found, picture = Clock(), list[Checkpoint](), trial.references[row : row + 1]
        captions, start = describe_references(trial.base, picture), None
        if is_predicted and trial.hypernetwork is not None:
            start = predict_identity(trial.hypernetwork, picture)

        def watch(step: int, steps: int, current: Current) -> None:
            with clock.stopped() as seconds:
                if step in at and step < steps and (step or start):
                    pairs = {name: LoraPair(pair.down.clone(), pair.up.clone()) for name, pair in current().items()}
                    found.append(Checkpoint(step, seconds, pairs))

        result = polish(trial.base, picture, start, config, captions=captions, watch=watch)
        with clock.stopped() as seconds:
            return [*found, Checkpoint(len(result.losses), seconds, _pairs(result.identity))]

    return run


def rival(train: Callable[[Trial, int, Settings, Sequence[int]], list[Checkpoint]], settings: Settings) -> Run:
    """One of the others."""
    return lambda trial, row, at: train(trial, row, settings, at)


def looks_of(trial: Trial, run: Run, at: Sequence[int]) -> list[Look]:
    """Make every person and judge them look by look."""
    runs = [run(trial, row, at) for row in range(trial.config.people)]
    steps = sorted({checkpoint.step for one in runs for checkpoint in one})
    return [_look(trial, step, [_at(one, step) for one in runs]) for step in steps]


def _at(run: Sequence[Checkpoint], step: int) -> Checkpoint:
    """The checkpoint of a step; the last one before it of a run that has ended earlier."""
    return max((one for one in run if one.step <= step), key=lambda one: one.step, default=run[0])


@torch.no_grad()
def _look(trial: Trial, step: int, people: Sequence[Checkpoint]) -> Look:
    config, pictures = trial.config, []
    for first, one in zip(range(0, config.people * config.prompts, config.prompts), people, strict=True):
        rows = range(first, first + config.prompts)
        options = DrawConfig(steps=config.sample_steps, batch=config.prompts)
        subject = Subject(adapter=one.pairs, identifier=IDENTIFIER)
        seeds = [config.seed * 1_000_000 + row for row in rows]
        pictures.append(draw(trial.base, trial.captions[first : rows.stop], subject, options, seeds=seeds))
    scores = score_pictures(trial, "look", torch.stack(pictures), 0.0)
    return Look(step, fmean(one.seconds for one in people), scores.similarity.mean, scores.attributes.mean)


def reached(looks: Sequence[Look], similarity: float, attributes: float) -> Look | None:
    """The first look that is similar enough while it follows the prompt."""
    return next((one for one in looks if one.similarity >= similarity and one.attributes > attributes), None)


def _pairs(identity: Identity) -> Mapping[str, LoraPair]:
    return identity.expand()


def methods(arguments: argparse.Namespace, trial: Trial) -> dict[str, Run]:
    """Every row of the table."""
    polishing, bases = PolishConfig(steps=arguments.steps), trial.hypernetwork
    # From nothing, too, in the predictor's bases: only the start shall differ.
    alike = {} if bases is None else {"down_dim": bases.config.down_dim, "up_dim": bases.config.up_dim}
    found = {"ours, predicted": ours(polishing, is_predicted=True)} if bases is not None else {}
    found["ours, scratch"] = ours(replace(polishing, **alike), is_predicted=False)
    settings = Settings(rate=USUAL_RATE, rank=4, batch=arguments.batch, steps=arguments.rival_steps)
    for rate in arguments.peft_rates:
        usual = ", usual" if rate == USUAL_RATE else ""
        found[f"peft {rate:g}{usual}"] = rival(train_peft, replace(settings, rate=rate))
    for rate in arguments.lidb_rates:
        found[f"lidb {rate:g}"] = rival(train_lidb, replace(settings, rate=rate, rank=1))
    return {name: run for name, run in found.items() if not arguments.only or name.startswith(tuple(arguments.only))}


def print_looks(name: str, looks: Sequence[Look]) -> None:
    """Everything that was seen of one method."""
    print(f"\n{name}\n{'steps':>7}{'seconds':>10}{'similarity':>12}{'attributes':>12}")
    for one in looks:
        print(f"{one.step:7}{one.seconds:10.2f}{one.similarity:12.3f}{one.attributes:12.3f}", flush=True)


def print_table(seen: Mapping[str, Sequence[Look]], likenesses: Sequence[float], attributes: float) -> None:
    """Seconds to each likeness, and their ratio to PEFT's best."""
    print(f"\nseconds (steps) to a similarity, at attributes above {attributes:g}; x: of PEFT's best")
    print(f"{'':20}" + "".join(f"{likeness:>26.2f}" for likeness in likenesses))
    best = {}
    for likeness in likenesses:
        of_peft = [reached(looks, likeness, attributes) for name, looks in seen.items() if name.startswith("peft")]
        best[likeness] = min((one.seconds for one in of_peft if one is not None), default=None)
    for name, looks in seen.items():
        cells = []
        for likeness in likenesses:
            one, least = reached(looks, likeness, attributes), best[likeness]
            ratio = f"{one.seconds / least:.2f} x" if one and least else ""
            cells.append(f"{one.seconds:.1f} s ({one.step}) {ratio:>7}" if one else "never        ")
        print(f"{name:20}" + "".join(f"{cell:>26}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description="Processor seconds until a method reaches a likeness.")
    parser.add_argument("--people", type=int, default=16, help="unseen people (default: 16)")
    parser.add_argument("--prompts", type=int, default=4, help="pictures of each at every look (default: 4)")
    parser.add_argument("--population", choices=("test", "validation"), default="test", help="(default: test)")
    parser.add_argument("--steps", type=int, help="of polishing (default: its own)")
    parser.add_argument("--rival-steps", type=int, default=300, help="of the others (default: 300)")
    parser.add_argument("--grid", type=int, nargs="+", default=list(GRID), help="steps after which to look")
    parser.add_argument("--batch", type=int, default=4, help="noise draws of the others in a step (default: 4)")
    parser.add_argument(
        "--peft-rates", type=float, nargs="*", default=[USUAL_RATE, 3e-4, 1e-3, 3e-3, 1e-2], help="of PEFT's LoRA"
    )
    parser.add_argument("--lidb-rates", type=float, nargs="*", default=[1e-3, 1e-2], help="of LiDB as published")
    parser.add_argument("--likeness", type=float, nargs="+", default=[0.6, 0.7, 0.75], help="similarities to reach")
    parser.add_argument("--attributes", type=float, default=0.95, help="what must stay right meanwhile")
    parser.add_argument("--only", nargs="*", default=[], help="rows whose names begin like one of these")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = TrialConfig(people=arguments.people, prompts=arguments.prompts, population=arguments.population)
    trial = set_up_trial(config, bundled_weights() / "miniature")
    print(f"{config.people} people, {config.prompts} pictures of each; {arguments.batch} draws in a rival's step")
    # What torch loads at its first step is not to be counted for whoever comes first.
    train_lidb(trial, 0, Settings(rate=USUAL_RATE, rank=1, batch=1, steps=1), ())
    seen = {}
    for name, run in methods(arguments, trial).items():
        seen[name] = looks_of(trial, run, arguments.grid)
        print_looks(name, seen[name])
    print_table(seen, arguments.likeness, arguments.attributes)


if __name__ == "__main__":
    main()
