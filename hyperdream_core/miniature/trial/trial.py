"""The miniature's trial: unseen people, eight prompts each, every method side by side, judged by the two judges.

What no method can beat (the person rendered in the asked-for contexts, seen through the VAE), what any must beat (the
base alone, other people), the cheat (a copy of the reference), the predictor and its controls, and polishing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...bundled import bundled_weights
from ...config import config_to_json
from ...errors import ConfigError
from ...identity import Identity
from ...models.hypernetwork import Hypernetwork
from ...ops.lidb import LidbCoefficients
from ...ops.lowrank import LoraPair
from ...pipelines.base import Base
from ...pipelines.diffusers.loading import load_base
from ...pipelines.drawing.draw import DrawConfig, draw
from ...pipelines.drawing.guidance_config import GuidanceConfig
from ...pipelines.drawing.subjects import Subject
from ...pipelines.polishing.polish import polish_batch
from ...pipelines.polishing.polish_config import PolishConfig
from ...pipelines.predictors.hypernetwork_predictor import read_hypernetwork_predictor
from ...pipelines.predictors.predict import PredictConfig, neutral_identity, predict_identity
from ...pipelines.progress import Progress, no_progress
from ...pipelines.scores import MethodScores, format_table, picture_similarity, score_method
from ..world.captions import IDENTIFIER, Context, describe_references, make_captions, random_context, reference_context
from ..world.people import SEEDS, People, random_people
from ..world.portrait import render_people
from ..world.view import random_view
from .config import TrialConfig
from .judges import AttributeJudge, IdentityJudge, attribute_accuracy, load_judges
from .kept_rows import check_rows, keep_row, kept_row, trial_digest


@dataclass(frozen=True)
class EvaluationReport:
    """The outcome of a trial."""

    rows: tuple[MethodScores, ...]
    table: str
    figures: dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """Everything the methods share."""

    config: TrialConfig
    base: Base
    hypernetwork: Hypernetwork | None
    people: People
    references: Tensor  # (people, 3, h, w)
    context: Context  # (people * prompts,)
    captions: list[str]
    identity_judge: IdentityJudge
    attribute_judge: AttributeJudge
    reference_embeddings: Tensor

    @cached_property
    def descriptions(self) -> list[list[str]]:
        """Per person what the base reads off the reference besides the person."""
        return [[text] for text in describe_references(self.base, self.references)]


def evaluate(
    config: TrialConfig | None = None,
    progress: Progress = no_progress,
    weights: Path | None = None,
    on_pictures: Callable[[str, Tensor], None] | None = None,
    keep: Path | None = None,
) -> EvaluationReport:
    """Run the trial.

    Args:
        config: settings.
        progress: called with (rows done, rows).
        weights: folder of base, hypernetwork and judges; the shipped one by default.
        on_pictures: called with each new row's name and pictures (people, prompts, 3, h, w).
        keep: folder where finished rows are kept, and taken from if they are of the same trial.
    """
    config, weights = config or TrialConfig(), weights or bundled_weights() / "miniature"
    digest = trial_digest(config, weights) if keep else ""
    if keep:
        check_rows(keep)
    trial = set_up_trial(config, weights)
    rows = []
    for index, method in enumerate(config.methods):
        progress(index, len(config.methods))
        if keep and (row := kept_row(keep, digest, method, config.people)):
            rows.append(row)
            continue
        started = time.perf_counter()
        pictures = _pictures(trial, method)
        seconds = time.perf_counter() - started
        rows.append(score_pictures(trial, method, pictures, seconds))
        if keep:
            keep_row(keep, digest, rows[-1])
        if on_pictures is not None:
            on_pictures(method, pictures)
    progress(len(config.methods), len(config.methods))
    names = [row.name for row in rows]
    table = format_table(rows, "base", "ceiling") if {"base", "ceiling"} <= set(names) else ""
    return EvaluationReport(tuple(rows), table, _figures(config, rows))


def set_up_trial(config: TrialConfig, weights: Path) -> Trial:
    """Base, predictor, judges, people and their references; people are the same for the same seed."""
    base = load_base(weights / "base")
    predictor = weights / "hypernetwork.safetensors"
    identity_judge, attribute_judge = load_judges(weights / "judges")
    generator = torch.Generator().manual_seed(SEEDS[config.population])
    people = random_people(config.people, generator)
    plain = reference_context(config.people, generator)
    references = render_people(people, plain, random_view(config.people, generator))
    count = config.people * config.prompts
    context = random_context(count, generator)
    with torch.no_grad():
        embeddings = identity_judge(references)
    return Trial(
        config=config,
        base=base,
        hypernetwork=read_hypernetwork_predictor(predictor).network if predictor.exists() else None,
        people=people,
        references=references,
        context=context,
        captions=make_captions(context),
        identity_judge=identity_judge,
        attribute_judge=attribute_judge,
        reference_embeddings=embeddings,
    )


def _pictures(trial: Trial, method: str) -> Tensor:
    """Pictures (people, prompts, 3, h, w) of one method."""
    people, prompts = trial.config.people, trial.config.prompts
    if method in ("ceiling", "other people"):
        order = torch.arange(people) if method == "ceiling" else torch.arange(people).roll(1)
        shown = trial.people[order.repeat_interleave(prompts)]
        view = random_view(people * prompts, torch.Generator().manual_seed(trial.config.seed))
        rendered = render_people(shown, trial.context, view)
        pictures = torch.cat([trial.base.decode_latents(trial.base.encode_image(part)) for part in rendered.split(50)])
        return pictures.unflatten(0, (people, prompts))
    if method == "copy":
        return trial.references.unsqueeze(1).expand(-1, prompts, -1, -1, -1)
    return draw_people(trial, identities_of(trial, method))


def identities_of(trial: Trial, method: str) -> Sequence[Identity | None]:
    """Each person's identity by a method that has one; None is the base alone."""
    count = trial.config.people
    if method == "base":
        return [None] * count
    if method.startswith("scratch+"):
        return _polished(trial, [None] * count, method)
    passes = int(method.partition("k=")[2] or 0)
    predicted = [_predict(trial, row, passes) for row in range(count)]
    if method == "wrong reference":
        return predicted[1:] + predicted[:1]
    if method == "mean prediction":
        return [_mean(predicted)] * count
    if method.startswith("prediction+"):
        return _polished(trial, predicted, method)
    return predicted


def _predict(trial: Trial, row: int, passes: int) -> Identity:
    if trial.hypernetwork is None:
        raise ConfigError("the trial's folder holds no hypernetwork.safetensors; name methods that need none")
    return predict_identity(trial.hypernetwork, trial.references[row : row + 1], PredictConfig(refine_steps=passes))


def _polished(trial: Trial, starts: Sequence[Identity | None], method: str) -> list[Identity]:
    steps = int(method.partition("+")[2])
    config = PolishConfig(steps=steps, rank=trial.config.polish_rank)
    if trial.hypernetwork is not None:
        # From nothing, too, in the predictor's bases: only the start shall differ.
        bases = trial.hypernetwork.config
        config = replace(config, down_dim=bases.down_dim, up_dim=bases.up_dim)
    captions = trial.descriptions if trial.config.captions else None
    return polish_batch(trial.base, list(trial.references.split(1)), starts, config, captions=captions)


def _mean(identities: Sequence[Identity]) -> Identity:
    """The identity of averaged coefficients: what the predictor says of nobody in particular."""
    layers = {
        name: LidbCoefficients(
            torch.stack([one.coefficients[name].down for one in identities]).mean(0),
            torch.stack([one.coefficients[name].up for one in identities]).mean(0),
        )
        for name in identities[0].coefficients
    }
    return replace(identities[0], coefficients=layers)


def draw_people(trial: Trial, identities: Sequence[Identity | None]) -> Tensor:
    """Pictures (people, prompts, 3, h, w) of every person's prompts, eight people at a time."""
    config, pictures = trial.config, []
    is_base = all(one is None for one in identities)
    options = _draw_config(config, is_base)
    neutral = None
    if config.guidance == "reference-null" and not is_base and trial.hypernetwork is not None:
        neutral = neutral_identity(trial.hypernetwork, trial.references.shape[-1]).expand()
    for first in range(0, config.people, 8):
        part = identities[first : first + 8]
        rows = slice(first * config.prompts, (first + len(part)) * config.prompts)
        seeds = [config.seed * 1_000_000 + row for row in range(rows.start, rows.stop)]
        pairs = _stacked([one for one in part if one is not None], config.prompts)
        subject = Subject(adapter=pairs, identifier=IDENTIFIER, neutral=neutral) if pairs else None
        pictures.append(draw(trial.base, trial.captions[rows], subject, options, seeds=seeds))
    return torch.cat(pictures).unflatten(0, (config.people, config.prompts))


def _draw_config(config: TrialConfig, is_base: bool) -> DrawConfig:
    guidance = {field.name: getattr(config, field.name) for field in fields(GuidanceConfig)}
    if is_base:
        guidance = {"guidance_scale": config.guidance_scale}
    return DrawConfig(steps=config.sample_steps, batch=8 * config.prompts, **guidance)


def _stacked(identities: Sequence[Identity], copies: int) -> dict[str, LoraPair]:
    """One adapter per picture: `copies` of each identity's."""
    expanded = [identity.expand() for identity in identities]
    return {
        name: LoraPair(
            *(
                torch.stack([getattr(one[name], side) for one in expanded]).repeat_interleave(copies, 0)
                for side in ("down", "up")
            )
        )
        for name in (expanded[0] if expanded else {})
    }


@torch.no_grad()
def score_pictures(trial: Trial, method: str, pictures: Tensor, seconds: float) -> MethodScores:
    """What the judges say of pictures (people, prompts, 3, h, w)."""
    flat = pictures.flatten(0, 1)
    shape = (trial.config.people, trial.config.prompts)
    embeddings = torch.cat([trial.identity_judge(part) for part in flat.split(100)])
    parts = [
        attribute_accuracy(trial.attribute_judge, flat[start : start + 100], trial.context[start : start + 100])
        for start in range(0, len(flat), 100)
    ]
    hits = {name: torch.cat([part[name] for part in parts]).unflatten(0, shape) for name in parts[0]}
    copies = picture_similarity(pictures, trial.references)
    return score_method(method, embeddings.unflatten(0, shape), trial.reference_embeddings, hits, copies, seconds)


def _figures(config: TrialConfig, rows: Sequence[MethodScores]) -> dict[str, Any]:
    by_name = {row.name: row for row in rows}
    figures: dict[str, Any] = {"config": config_to_json(config), "rows": {}}
    for row in rows:
        entry = {
            "similarity": asdict(row.similarity),
            "attributes": asdict(row.attributes),
            "per_attribute": dict(row.per_attribute),
            "copy": asdict(row.copy),
            "top1": row.top1,
            "seconds": round(row.seconds, 1),
        }
        if {"base", "ceiling"} <= by_name.keys():
            entry["gap_closed"] = asdict(row.gap_closed(by_name["base"], by_name["ceiling"]))
        figures["rows"][row.name] = entry
    return figures
