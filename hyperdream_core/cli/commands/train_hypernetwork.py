"""`hyperdream train hypernetwork`: a predictor for a checkpoint, trained on a corpus, on one device or many."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base_flags import BaseChoice, add_base_flags, add_out_flag, device_named
from ..console import Console, Outcome
from ..flags import add_config_flags, config_from_flags, place, whole_number

if TYPE_CHECKING:
    from ...models.hypernetwork import HypernetworkConfig
    from ...pipelines.training.train_predictor import PredictorJob, PredictorTraining

_OF_THE_JOB = ("family", "image_encoder", "freeze_image_encoder")
"""Settings of the network that follow from the base and the image encoder."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `train hypernetwork`."""
    from ...models.hypernetwork import HypernetworkConfig
    from ...pipelines.training.train_predictor import PredictorTraining

    parser.add_argument("--corpus", type=place, required=True, metavar="DIR", help="folder of the corpus, encoded")
    add_base_flags(parser, may_be_quantized=False)
    parser.add_argument(
        "--image-encoder", type=place, metavar="PATH",
        help="what looks at references: a folder of a transformers vision model, or a predictor's file, whose own is "
        "taken; it stays as it is (default: a small one, trained along)",
    )  # fmt: skip
    add_out_flag(parser, "predictor.safetensors")
    parser.add_argument(
        "--work", type=place, metavar="DIR",
        help="folder of the checkpoint, log.csv, curves and grids; the same one goes on (default: that of --out, with "
        "-training at the end of its name)",
    )  # fmt: skip
    parser.add_argument(
        "--processes", type=whole_number, default=1, metavar="N",
        help="processes that share each step, one for each GPU; under `accelerate launch` leave it out (default: 1)",
    )  # fmt: skip
    parser.add_argument("--plan", action="store_true", help="measure a few steps, say what all would cost, and stop")
    parser.add_argument(
        "--people", type=whole_number, default=0, metavar="N",
        help="with --plan: people that the corpus is to have (default: 0, as many as it has)",
    )  # fmt: skip
    add_config_flags(parser, PredictorTraining, skip=("cycle_decay",))
    add_config_flags(parser.add_argument_group("network"), HypernetworkConfig, skip=_OF_THE_JOB)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What the command line asks for; each process opens it for itself."""

    base: BaseChoice
    corpus: Path
    image_encoder: Path | None
    network: HypernetworkConfig
    config: PredictorTraining
    out: Path
    work: Path
    processes: int

    def open(self, console: Console) -> PredictorJob:
        """The base, the corpus and the image encoder, on this process's device."""
        from ...pipelines.corpora.corpus import Corpus
        from ...pipelines.predictors.frozen_encoder import load_image_encoder
        from ...pipelines.training.launch import own_device
        from ...pipelines.training.train_predictor import PredictorJob

        corpus = Corpus.open(self.corpus)
        corpus.check("latents")
        device = own_device(device_named(self.base.device))
        encoder = load_image_encoder(self.image_encoder, device) if self.image_encoder is not None else None
        base = replace(self.base, device=str(device)).load(console)
        return PredictorJob(
            base=base, base_name=Path(self.base.source).stem, corpus=corpus, network=self.network, config=self.config,
            work=self.work, encoder=encoder,
        )  # fmt: skip


def run(arguments: argparse.Namespace, console: Console) -> Outcome:
    """The predictor's file, or its plan."""
    from ...models.hypernetwork import HypernetworkConfig
    from ...pipelines.training.launch import is_main_process, launch
    from ...pipelines.training.train_predictor import PredictorTraining
    from ...pipelines.training.training_log import check_trackers

    config = config_from_flags(PredictorTraining, arguments)
    choice = BaseChoice.of(arguments)
    job = _Job(
        base=choice,
        corpus=arguments.corpus,
        image_encoder=arguments.image_encoder,
        network=config_from_flags(HypernetworkConfig, arguments, family=choice.family.name),
        config=config,
        out=arguments.out,
        work=arguments.work or arguments.out.with_name(f"{arguments.out.stem}-training"),
        processes=arguments.processes,
    )
    check_trackers(config.trackers)
    if arguments.plan:
        return _plan(job, arguments.people, console)
    console.open_results(job.out.parent, [job.out.name])
    console.open_results(job.work)
    console.on_stop = f"what was trained is kept in {job.work}; the same command goes on from there"
    launch(_train, (job, console), job.processes, _kind_of(choice.device))
    if job.processes == 1 and not is_main_process():
        return Outcome({}, "")
    facts = _facts_of(job.out)
    return Outcome({"file": str(job.out), "bytes": job.out.stat().st_size, **facts}, _card(job.out, facts))


def _train(job: _Job, console: Console) -> None:
    """In each process."""
    from ...pipelines.training.launch import is_main_process
    from ...pipelines.training.train_predictor import save_predictor, train_predictor

    opened, is_main = job.open(console), is_main_process()
    if job.processes > 1:
        _share_cores(job.processes)
    with console.progress("training") as progress:
        network, facts = train_predictor(
            opened, progress if is_main else None, console.say if is_main else lambda text: None
        )
    if is_main:
        save_predictor(job.out, opened, network, facts)


def _plan(job: _Job, people: int, console: Console) -> Outcome:
    from ...pipelines.training.plan import measure

    console.say("measuring a few steps")
    plan = measure(job.open(console), job.processes, people)
    return Outcome(plan.report(), plan.text(), ok=not plan.problems)


def _kind_of(device: str) -> str:
    """Of a device, without touching it: a GPU that has been is of no use to the processes that are started here."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.device_count() else "cpu"
    kind = device.partition(":")[0]
    return kind if kind in ("cpu", "cuda") else device_named(device).type


def _share_cores(processes: int) -> None:
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // processes))


def _facts_of(path: Path) -> dict[str, Any]:
    """What the file says of its training."""
    from ...formats.container import read_names

    facts: dict[str, Any] = json.loads(read_names(path)[0].get("training", "{}"))
    return facts


def _card(path: Path, facts: dict[str, Any]) -> str:
    """The model card, for people."""
    probes = ", ".join(f"{name} {value:.4f}" for name, value in facts.get("probes", {}).items())
    lines = [
        f"{path} ({path.stat().st_size / 1e6:,.1f} MB)",
        f"for {facts.get('base')}, from {facts.get('people'):,} people in {facts.get('steps'):,} steps; image encoder: "
        f"{facts.get('image_encoder')}",
        f"licence of the pictures: {facts.get('licence') or 'not said'}",
    ]
    return "\n".join([*lines, *([f"held-out people: {probes}"] if probes else [])])
