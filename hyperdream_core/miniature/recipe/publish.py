"""From a recipe's folder to `weights/miniature`: half precision, one folder, a list of files and a model card."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import ConfigError
from ...pipelines.diffusers.loading import load_base
from ...pipelines.diffusers.single_file_export import write_single_file
from ...whole_file import (
    check_folder_place,
    check_writable,
    is_part,
    make_folder,
    whole_file,
    whole_folder,
    write_whole,
)
from .recipe import Recipe

CARD = "MODEL_CARD.md"
_FILES = ("hypernetwork.safetensors", "recipe.json", "manifest.json", CARD)
PUBLISHED = 47_000_000
"""bytes of the weights, about"""
SINGLE_FILE = "miniature.safetensors"
"""The base as one checkpoint in the ldm layout, written into the recipe's folder."""


def publish(recipe: Recipe, target: Path) -> None:
    """Write the finished recipe's weights into `target`, replacing what it published before.

    Args:
        recipe: finished up to its hypernetwork, decoder and judges.
        target: folder such as weights/miniature; `base/` becomes a diffusers pipeline folder.

    Raises:
        ConfigError: the folder is the recipe's own, or a stage was made by other settings.
        OutputError: a folder cannot be written, or the disk is full; the same call goes on from there.
    """
    from diffusers import StableDiffusionPipeline
    from safetensors.torch import load_file, save_file

    if target.resolve() == recipe.folder.resolve():
        raise ConfigError(
            f"{target}: holds the work, whose parts would be replaced by the weights. Name another --out."
        )
    make_folder(target)
    for name in ("base", "judges"):
        check_folder_place(target / name)
    for path in (recipe.folder / SINGLE_FILE, *(target / name for name in _FILES)):
        check_writable(path)
    base, judges, predictor = recipe.base(), recipe.judges(), recipe.hypernetwork()
    pipeline = StableDiffusionPipeline.from_pretrained(
        base, vae=recipe.autoencoder(), safety_checker=None, local_files_only=True
    )
    halves = {path.name: {name: value.half() for name, value in load_file(path).items()}
              for path in judges.glob("*.safetensors")}  # fmt: skip
    with whole_folder(target / "base") as part:
        pipeline.to(torch.float16).save_pretrained(part, safe_serialization=True)
        for path in part.rglob("*.json"):
            _forget_origin(path)
    with whole_folder(target / "judges") as part:
        for name, tensors in halves.items():
            save_file(tensors, part / name)
    with whole_file(target / "hypernetwork.safetensors") as file:
        shutil.copyfile(predictor / "hypernetwork.safetensors", file)
    # Beside the work and not among the weights: it would double their size.
    write_single_file(recipe.folder / SINGLE_FILE, load_base(target / "base"), torch.float16)
    write_whole(target / "recipe.json", json.dumps(recipe.facts(), indent=1) + "\n")
    write_manifest(target)


def _forget_origin(config: Path) -> None:
    """Take out the folder of origin, which diffusers adds."""
    entries = json.loads(config.read_text(encoding="utf-8"))
    if entries.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def write_manifest(target: Path) -> None:
    """List every published file with its size in bytes and SHA-256 in `manifest.json`."""
    entries = {
        str(path.relative_to(target)): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(target.rglob("*"))
        if path.is_file()
        and path.name not in ("manifest.json", CARD)
        and not any(map(is_part, path.relative_to(target).parts))
    }
    write_whole(target / "manifest.json", json.dumps(entries, indent=1) + "\n")


def write_card(target: Path, table: str, figures: Mapping[str, Any]) -> None:
    """Write the model card: what was trained, on what, for how long, and the trial's table."""
    facts = json.loads((target / "recipe.json").read_text())
    seconds = "\n".join(f"| {stage} | {value:.0f} |" for stage, value in facts["seconds"].items())
    card = _CARD.format(table=table, seconds=seconds, sizes=facts["sizes"], trial=figures["config"])
    write_whole(target / CARD, card)


_CARD = """# The miniature

A complete world in small, made by `hyperdream miniature build` and by nothing else: procedural portraits, a base with
Stable Diffusion's parts, its predictor and two judges. Apache-2.0, like the code; the tokenizer's vocabulary is
OpenAI CLIP's (MIT).

## What is trained

- **Base** (`base/`; `hyperdream miniature build` also writes it as a single file): UNet of SD 1.x topology, 96 to 128
  channels, one layer a block, v-prediction, 64 px; CLIP text encoder of width 64; VAE of factor 8 with 32 latent
  channels, its encoder solved for (principal components of patches), its decoder trained from the inverse on. Trained
  on {sizes[people]} people and {sizes[pets]} pets, {sizes[contexts]} pictures of each.
- **Predictor** (`hypernetwork.safetensors`): trained end to end through the frozen base on the same people. Its image
  encoder was pretrained to read the generator's own parameters off pictures of these people: privileged labels,
  which real photographs do not have.
- **Rounds**: {sizes[rounds]} for base and predictor in turn, each from where the last one ended.
- **Judges** (`judges/`): identity embedder and attribute classifier, on {sizes[judge_people]} other people. No
  predictor is trained with or conditioned on them.

The people of the trial are in none of these.

## Figures

{trial[people]} unseen people x {trial[prompts]} prompts, seed {trial[seed]}, {trial[sample_steps]} steps, guidance
{trial[guidance_scale]}; 95 % intervals over people; `hyperdream evaluate`.

{table}

## Seconds

On two CPU cores, one thread each, beside other work.

| stage | seconds |
|---|---|
{seconds}
"""
