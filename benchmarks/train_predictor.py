"""A predictor's training at a family's true shape, every option on: seconds a step, peak memory, and that it resumes.

    OMP_NUM_THREADS=1 python -m benchmarks.train_predictor [--case FAMILY:PIXELS:DTYPE ...] [--device cpu]

Weights, latents, captions and features are random numbers; what a step costs does not depend on them. The features are
those of a CLIP ViT-H/14, 257 tokens of 1,280. Two steps are taken, the training is stopped, and a third resumes it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from hyperdream_core.bases import get_base
from hyperdream_core.models.hypernetwork import Hypernetwork, HypernetworkConfig
from hyperdream_core.models.image_encoder import ImageFeatures
from hyperdream_core.ops.lidb import LidbCoefficients
from hyperdream_core.pipelines.training.loop import Moment, TrainingConfig, train
from hyperdream_core.pipelines.training.subject_rows import SubjectBatches
from hyperdream_core.pipelines.training.train_hypernetwork import HypernetworkObjective

from .random_bases import encoded_base

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOKENS, FEATURES = 257, 1280
STEPS = 3


@dataclass(eq=False)
class RandomPeople:
    """A dozen subjects with two pictures each."""

    latent_shape: tuple[int, int, int]
    hypernetwork: Hypernetwork
    training: Tensor = field(default_factory=lambda: torch.arange(12))

    def __post_init__(self) -> None:
        self.reference_counts = self.picture_counts = torch.full((12,), 2)
        self.subjects = [SimpleNamespace(references=(0, 1), pictures=(0, 1)) for _ in range(12)]

    def take(self, name: str, subjects: Tensor, rows: Tensor | None = None) -> Tensor:
        return torch.randn(len(subjects), *self.latent_shape)

    def features(self, subjects: Tensor, rows: Tensor | None = None) -> ImageFeatures:
        tokens = torch.randn(len(subjects), TOKENS, FEATURES)
        return ImageFeatures(tokens, tokens[:, 0])

    def captions(self, subjects: Tensor, rows: Tensor) -> list[str]:
        return ["smiling"] * len(subjects)

    def identities(self, subjects: Tensor) -> dict[str, LidbCoefficients]:
        start = self.hypernetwork.start(len(subjects))
        return {name: LidbCoefficients(one.down.detach().cpu(), one.up.detach().cpu()) for name, one in start.items()}


class _Stopped(Exception):
    pass


def measure(case: str, device: str, batch: int, pictures: int, width: int) -> str:
    """One line of the table."""
    name, pixels, dtype = case.split(":")
    family, side = get_base(name), int(pixels) // get_base(name).vae_factor
    torch.manual_seed(0)
    base = encoded_base(family, device, DTYPES[dtype])
    encoder = {"kind": "conv", "width": FEATURES}
    network = Hypernetwork(HypernetworkConfig(family=name, width=width, heads=8, image_encoder=encoder)).to(device)
    network.encoder = torch.nn.Identity()  # type: ignore[assignment]
    people = RandomPeople((family.latent_channels, side, side), network)
    batches = SubjectBatches(
        corpus=people, rows=batch, pictures=pictures, names="a sks face", picture_size=int(pixels),
        latent_shape=people.latent_shape, passes=1, device=device, has_features=True, has_identities=True,
    )  # fmt: skip
    config = TrainingConfig(
        steps=STEPS, warmup=1, batch=batch, micro_batch=1, recompute=True, save_every=2,
        precision="fp32" if dtype == "fp32" else "bf16" if dtype == "bf16" else "fp16",
    )  # fmt: skip
    objective = HypernetworkObjective(network, base, supervision=0.1, recompute=True)
    objective.hypernetwork.train()
    seconds: list[float] = []
    clock = time.perf_counter if device != "cpu" else time.process_time

    def watch(moment: Moment) -> None:
        seconds.append(clock())
        if moment.step == 2 and len(seconds) == 2:
            raise _Stopped

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "checkpoint"
        began = clock()
        with suppress(_Stopped):
            train(objective, batches, config, place, device=device, on_step=objective.at, watch=watch)
        losses = train(objective, batches, config, place, device=device, on_step=objective.at)
        size = place.stat().st_size
    assert len(losses) == STEPS
    peak = (
        torch.cuda.max_memory_allocated()
        if device != "cpu"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    parameters = sum(p.numel() for p in network.parameters())
    weights = sum(p.numel() * p.element_size() for p in base.unet.parameters())
    return (
        f"| {family.title} | {pixels} px, {dtype} | {batch} x {pictures} | {parameters / 1e6:.1f} M | "
        f"{seconds[1] - seconds[0]:.1f} ({seconds[0] - began:.1f} the first) | {peak / 2**30:.2f} "
        f"({weights / 2**30:.2f} of it the UNet) | {size / 1e6:,.0f} | {losses[0]:.3f} {losses[-1]:.3f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", default=["miniature:64:fp32", "sd15:256:fp32", "sdxl:256:bf16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=2, help="subjects of a step, one at a time")
    parser.add_argument("--pictures", type=int, default=1, help="of each subject")
    parser.add_argument("--width", type=int, default=512, help="of the hypernetwork")
    arguments = parser.parse_args()
    print("| base | size | subjects x pictures | predictor | seconds a step | peak GiB | checkpoint MB | losses |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for case in arguments.case:
        # A process of its own, so that the peak is that of one case.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            settings = (case, arguments.device, arguments.batch, arguments.pictures, arguments.width)
            print(pool.apply(measure, settings), flush=True)


if __name__ == "__main__":
    main()
