"""`hyperdream evaluate`: the trial of all methods on the miniature's unseen people, and guidance's curves."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from ...bundled import SHIPPED
from ..console import Console, Outcome
from ..flags import add_config_flags, config_from_flags, given_values, place
from ..threads import use_threads_for

if TYPE_CHECKING:
    pass


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `evaluate`."""
    from ...miniature.trial.config import TrialConfig

    parser.add_argument(
        "--weights",
        type=place,
        metavar="DIR",
        help="folder of base, predictor and judges (default: the shipped one)",
    )
    parser.add_argument(
        "--out",
        type=place,
        metavar="DIR",
        help="write table.md and figures.json to this folder; keep finished rows",
    )
    parser.add_argument(
        "--sweep",
        nargs="*",
        metavar="CURVE",
        help="draw curves of likeness against the prompt over strengths and scales instead: all of them, or those "
        "named: plain, hybrid, base-null, mix, blend, reference-null, scheduled, rescaled, 'weak null', banded; writes "
        "sweep.md, sweep.json and sweep.png",
    )
    add_config_flags(parser, TrialConfig)


def run(arguments: argparse.Namespace, console: Console) -> Outcome:
    """The trial's table, or its curves."""
    import torch

    from ...miniature.trial.config import TrialConfig
    from ...miniature.trial.trial import evaluate

    use_threads_for(SHIPPED, torch.device("cpu"))
    if arguments.sweep is not None:
        return _sweep(arguments, console)
    config = config_from_flags(TrialConfig, arguments)
    results = console.open_results(arguments.out, ["table.md", "figures.json"]) if arguments.out else None
    if arguments.out:
        console.on_stop = f"finished rows are kept in {arguments.out}; the same command goes on from there"
    with console.progress("evaluating", "method") as progress:
        report = evaluate(config, progress, arguments.weights, keep=arguments.out)
    if results is not None:
        results.keep_text("table.md", report.table + "\n")
        results.keep_json("figures.json", report.figures)
        results.close()
    # The table needs a base and a ceiling to compare with; without them the figures are all there is.
    text = report.table or json.dumps(report.figures["rows"], indent=2)
    return Outcome({"table": report.table, **report.figures}, text)


def _sweep(arguments: argparse.Namespace, console: Console) -> Outcome:
    from ...errors import ConfigError
    from ...miniature.trial.config import TrialConfig
    from ...miniature.trial.sweep import SWEEP_METHODS, sweep
    from ...pictures.files import save_image

    if arguments.out is None:
        raise ConfigError("a sweep takes long and makes a picture, and there is no folder for them; add --out DIR")
    config = config_from_flags(TrialConfig, arguments, **_methods(arguments, SWEEP_METHODS))
    results = console.open_results(arguments.out, ["sweep.md", "sweep.json", "sweep.png"])
    console.on_stop = f"finished points are kept in {arguments.out}; the same command goes on from there"
    with console.progress("sweeping", "point") as progress:
        report = sweep(config, arguments.sweep, progress, arguments.weights, arguments.out)
    results.keep_text("sweep.md", report.table + "\n")
    results.keep_json("sweep.json", report.figures)
    results.keep("sweep.png", lambda path: save_image(path, report.picture))
    results.close()
    return Outcome({"table": report.table, **report.figures}, report.table)


def _methods(arguments: argparse.Namespace, default: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    from ...miniature.trial.config import TrialConfig

    return {} if "methods" in given_values(TrialConfig, arguments) else {"methods": default}
