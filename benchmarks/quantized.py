"""What quantising costs: the error of the miniature's UNet by kind and fit, and the time of a step through it.

    OMP_NUM_THREADS=1 python -m benchmarks.quantized [--pictures N] [--groups N ...] [--step FAMILY:PIXELS ...]

The error is that of the UNet's output, relative to its own size, on rendered people at five noise levels, with the
caption that describes each picture. Beside it stands the error of the quantised weights themselves, and the bits that a
weight takes with its scales. `--step` times forward and backward of polishing through the quantised UNet and through
the same in full precision, in turns, by the processor's clock: what counts is their ratio.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hyperdream_core.bases import get_base
from hyperdream_core.miniature.world.captions import make_captions, random_context
from hyperdream_core.miniature.world.people import SEEDS, random_people
from hyperdream_core.miniature.world.portrait import render_people
from hyperdream_core.miniature.world.view import random_view
from hyperdream_core.models.quantized_linear import QuantizedLayer
from hyperdream_core.models.quantized_network import quantize_network_
from hyperdream_core.ops.quantize import FITS, KINDS, dequantize
from hyperdream_core.pipelines.base import Base, Conditioning
from hyperdream_core.pipelines.diffusers.loading import load_base
from hyperdream_core.pipelines.polishing.denoising_error import Prompts, Samples, personalized, row_errors
from hyperdream_core.pipelines.polishing.trainable_adapters import TrainableAdapters, without_effect

from .random_bases import encoded_base

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Inputs:
    """Of the UNet: noisy latents at each level, and what their captions say."""

    latents: tuple[Tensor, ...]
    conditioning: Conditioning


def inputs_of(base: Base, pictures: int) -> Inputs:
    """Of people whom nothing was trained on."""
    generator = torch.Generator().manual_seed(SEEDS["validation"])
    people, context = random_people(pictures, generator), random_context(pictures, generator)
    clean = base.encode_image(render_people(people, context, random_view(pictures, generator)))
    noise = torch.randn(clean.shape, generator=generator)
    noisy = tuple(base.noise.noisy(clean, noise, torch.tensor([level])) for level in LEVELS)
    return Inputs(noisy, base.encode_prompt(make_captions(context, generator)))


def outputs_of(base: Base, inputs: Inputs) -> list[Tensor]:
    """Of the UNet, (b, c, h, w) at each level."""
    with torch.no_grad():
        return [
            base.predict(latents, torch.full((len(latents),), level), inputs.conditioning)
            for latents, level in zip(inputs.latents, LEVELS, strict=True)
        ]


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of what was wanted."""
    return float((found - wanted).norm() / wanted.norm())


def weights_error(quantized: nn.Module, plain: nn.Module) -> float:
    """Of all quantised weights together."""
    wrong = size = 0.0
    for name, layer in quantized.named_modules():
        if isinstance(layer, QuantizedLayer):
            weight = plain.get_submodule(name).weight
            wrong += float((dequantize(layer.quantized) - weight).square().sum())
            size += float(weight.square().sum())
    return (wrong / size) ** 0.5


def errors(pictures: int, groups: list[int]) -> Iterator[str]:
    """The table's lines."""
    base = load_base()
    plain, inputs = base.unet, inputs_of(base, pictures)
    wanted = outputs_of(base, inputs)
    yield (
        "| kind | inputs a scale | fit | bits a weight | weights | "
        + " | ".join(f"t = {t}" for t in LEVELS)
        + " | mean |"
    )
    yield "| --- " * (6 + len(LEVELS)) + "|"
    cases = [(kind, group, fit, None) for kind in KINDS for group in [None, *groups] for fit in FITS]
    cases += [(kind, None, "best", "int8") for kind in KINDS]
    for kind, group, fit, ends in cases:
        unet = copy.deepcopy(plain)
        done = quantize_network_(unet, kind, group, fit, ends)
        object.__setattr__(base, "unet", unet)
        found = [relative_error(ours, theirs) for ours, theirs in zip(outputs_of(base, inputs), wanted, strict=True)]
        object.__setattr__(base, "unet", plain)
        size = KINDS[kind].group if group is None else group
        name = kind if ends is None else f"{kind}, ends {ends}"
        columns = [name, str(size or "all"), fit, f"{done.bits_per_weight:.2f}", f"{weights_error(unet, plain):.4f}"]
        yield f"| {' | '.join(columns + [f'{one:.4f}' for one in [*found, sum(found) / len(found)]])} |"


def step_seconds(family_name: str, pixels: int, kinds: list[str], rounds: int) -> dict[str, float]:
    """Least processor time of a forward and backward through the UNet, in full precision and by kind."""
    family = get_base(family_name)
    like = without_effect(family, [None], ("attention", 50, 100))
    side, bases = pixels // family.vae_factor, {}
    for kind in ["full", *kinds]:
        base = encoded_base(family, "cpu", torch.float32)
        if kind != "full":
            quantize_network_(base.unet, kind, fit="min-max")
        bases[kind] = base
    latents = torch.randn(1, 1, family.latent_channels, side, side, generator=torch.Generator().manual_seed(0))
    samples = Samples(latents, torch.tensor([0.5]), latents, torch.zeros(1, 1, dtype=torch.long))
    least = dict.fromkeys(bases, float("inf"))
    for _ in range(rounds):
        for kind, base in bases.items():
            adapters = TrainableAdapters(family, like, 4, [None], torch.Generator(), torch.device("cpu"))
            prompts = Prompts.encoded(base, ["a sks face"], 1)
            start = time.process_time()
            with personalized(base, adapters, prompts, 1) as conditioning:
                row_errors(base, conditioning, samples).sum().backward()
            least[kind] = min(least[kind], time.process_time() - start)
    return least


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=8, metavar="N", help="people to measure on (default: 8)")
    parser.add_argument("--groups", type=int, nargs="*", default=[], metavar="N", help="other inputs a scale; 0: all")
    parser.add_argument("--step", nargs="*", default=[], metavar="FAMILY:PIXELS", help="time steps, such as sd15:256")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), metavar="KIND", help="that --step times")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of --step (default: 5)")
    parser.add_argument("--no-errors", action="store_true", help="only what --step asks for")
    arguments = parser.parse_args()
    if not arguments.no_errors:
        for line in errors(arguments.pictures, arguments.groups):
            print(line, flush=True)
    for one in arguments.step:
        family, _, pixels = one.partition(":")
        found = step_seconds(family, int(pixels), arguments.kinds, arguments.rounds)
        print(
            f"{one}, seconds a step: " + ", ".join(f"{k} {s:.3f} (x {s / found['full']:.2f})" for k, s in found.items())
        )


if __name__ == "__main__":
    main()
