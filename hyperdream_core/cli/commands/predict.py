"""`hyperdream predict`: pictures to an identity, in one pass."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ...bundled import SHIPPED
from ..base_flags import add_device_flag, add_out_flag, device_named
from ..console import Console, Outcome, identity_outcome
from ..flags import add_config_flags, config_from_flags
from ..reference_flags import References, add_reference_flags
from ..threads import use_threads_for

if TYPE_CHECKING:
    from ...pipelines.predictors.predict import PredictConfig


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `predict`."""
    from ...pipelines.predictors.predict import PredictConfig

    add_reference_flags(parser)
    parser.add_argument(
        "--predictor", default=SHIPPED, metavar="FILE",
        help=f"the predictor's file (default: the one that is shipped, for {SHIPPED!r})",
    )  # fmt: skip
    parser.add_argument("--hypernetwork", dest="predictor", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    add_device_flag(parser)
    add_out_flag(parser, "identity.safetensors")
    add_config_flags(parser, PredictConfig)


def run(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Pictures to an identity file, in one pass."""
    from ...pipelines.predictors.predict import PredictConfig

    config = config_from_flags(PredictConfig, arguments)
    return predict(console, References.of(arguments), config, arguments.predictor, arguments.device, arguments.out)


def predict(
    console: Console, references: References, config: PredictConfig, source: str, device: str, out: Path
) -> Outcome:
    """The identity that the predictor of that file or name sees in the pictures, written to a file."""
    from ...formats.identity_file import write_identity
    from ...pipelines.predictors.predictor import open_predictor

    results = console.open_results(out.parent, [out.name])
    pictures = references.read()
    place = device_named(device)
    predictor = open_predictor(source, place)
    use_threads_for(predictor.family, place)
    faces = references.prepare(console, pictures, predictor.family, config.class_noun)
    identity = predictor.predict(faces, config)[0]
    path = results.keep(out.name, lambda path: write_identity(path, identity))
    results.close()
    return identity_outcome(path, identity, {"references": len(faces.used), "faces": faces.prepared.report()})
