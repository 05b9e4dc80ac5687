"""The whole job: pictures of a subject in; its identity, a LoRA, pictures, a labelled grid and a report out.

What can be refused is refused before the work begins, and each result is written as soon as it is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import config_to_json
from ..errors import BaseMismatchError, Cancelled, ConfigError, ReferenceImageError
from ..faces.prepare import PreparedReferences
from ..formats.identity_file import write_identity
from ..identity import Identity
from ..pictures.files import save_image
from ..pictures.grid import labelled_grid
from .base import Base
from .drawing.draw import DrawConfig, draw
from .drawing.subjects import Subject, Subjects
from .export import ExportConfig, export_lora
from .polishing.polish import PolishConfig, PolishResult, polish
from .predictors.predict import PredictConfig, neutral_identity, predict_identity
from .predictors.stored_hypernetwork import StoredHypernetwork
from .progress import Progress, no_progress
from .prompts import insert_identifier, without_identifier
from .results_folder import ResultsFolder

Judge = Callable[[Tensor, Tensor], Tensor]
"""Likeness (b,) of pictures (b, 3, h, w) to the subject of references (n, 3, h, w); NaN where it cannot be measured."""


@dataclass(frozen=True, kw_only=True)
class PersonalizeConfig:
    """Settings of the whole job."""

    prompts: tuple[str, ...] = ("a [V] face",)
    """What to draw; [V] stands for the subject."""
    captions: tuple[str, ...] = ()
    """What each picture shows besides the subject; none says nothing. See `polish`."""
    name: str = "subject"
    """What the files are called."""
    insert_identifier: bool = False
    """Put the identifier into prompts that lack it, instead of refusing them."""
    predict: PredictConfig = field(default_factory=PredictConfig)
    """Settings of the prediction."""
    polish: PolishConfig = field(default_factory=PolishConfig)
    """Settings of the polishing."""
    sample: DrawConfig = field(default_factory=DrawConfig)
    """Settings of the drawing."""
    export: ExportConfig = field(default_factory=ExportConfig)
    """Settings of the LoRA."""

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ConfigError("prompts is empty, expected at least one; say what to draw, such as 'a [V] face'")
        if not self.name or Path(self.name).name != self.name or self.name.startswith("."):
            raise ConfigError(f"name must be a plain file name without a folder, got {self.name!r}")


@contextmanager
def _unwatched(label: str) -> Iterator[Progress]:
    yield no_progress


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who looks on: progress of each stage, and a judge of likeness."""

    stage: Callable[[str], AbstractContextManager[Progress]] = _unwatched
    """opens the progress of a stage by its label"""
    judge: Judge | None = None
    likeness: str = "not measured: there is no judge"
    """who measures likeness, or why nobody does"""


@dataclass(frozen=True, eq=False)
class PersonalizeResult:
    """What the job has made."""

    identity: Identity
    pictures: Tensor
    """(b, 3, h, w) in 0..1, one for each prompt; empty if stopped before"""
    report: Mapping[str, Any]
    """JSON values, as in the report file"""
    files: tuple[Path, ...]
    cancelled: bool
    """stopped by the user: the identity is the best so far, and what comes after it is missing"""


def personalize(
    base: Base,
    hypernetwork: StoredHypernetwork | None,
    references: Tensor | PreparedReferences,
    results: ResultsFolder,
    config: PersonalizeConfig | None = None,
    watch: Watch | None = None,
) -> PersonalizeResult:
    """Predict, polish, save, export and draw one subject.

    Args:
        base: to personalise.
        hypernetwork: predictor for the base's family; None polishes from nothing.
        references: as `prepare_references` gives them, or just (n, 3, h, w) in 0..1; at the size to train at.
        results: where everything goes; `ResultsFolder.open` has checked that it can be written.
        config: settings.
        watch: progress and judge.

    Raises:
        PromptError: a prompt does not name the subject.
        BaseMismatchError: the predictor is for another base family.
        OutputError: something could not be written where it belongs; says where it is instead.
    """
    job = _Job(base, references, results, config or PersonalizeConfig(), watch or Watch())
    job.check(hypernetwork)
    try:
        polished = job.make_identity(hypernetwork)
        job.save(polished)
        job.cancelled = polished.cancelled
        if not job.cancelled:
            job.draw()
    except (Cancelled, KeyboardInterrupt):
        # Without an identity there is nothing to keep.
        if not job.adapters:
            raise
        job.cancelled = True
        if not results.written:
            # Stopped between the prediction and the polish.
            job.save(PolishResult(job.adapters["predicted"], (), 0.0, cancelled=True))
    report = job.report()
    results.keep_json(f"{job.config.name}-report.json", report)
    results.close()
    identity = job.identity
    assert identity is not None
    return PersonalizeResult(identity, job.pictures, report, tuple(results.written), job.cancelled)


class _Job:
    """One personalisation at work."""

    def __init__(
        self,
        base: Base,
        references: Tensor | PreparedReferences,
        results: ResultsFolder,
        config: PersonalizeConfig,
        watch: Watch,
    ) -> None:
        self.base, self.results, self.config, self.watch = base, results, config, watch
        self.prepared = references if isinstance(references, PreparedReferences) else None
        self.references: Tensor = references.pixels if isinstance(references, PreparedReferences) else references
        self.seconds: dict[str, float] = {}
        self.notes: list[str] = []
        self.neutral: Identity | None = None
        """of a neutral reference, where guidance leads away from it"""
        self.adapters: dict[str, Identity] = {}
        """predicted and polished, as far as they are there"""
        self.likeness: dict[str, float] = {}
        self.losses: tuple[float, ...] = ()
        self.pictures = torch.zeros(0, *self.references.shape[1:])
        self.prompts: list[str] = []
        self.cancelled = False

    @property
    def identity(self) -> Identity | None:
        """The best there is."""
        return self.adapters.get("polished") or self.adapters.get("predicted")

    def check(self, hypernetwork: StoredHypernetwork | None) -> None:
        """Refuse what would fail later on."""
        if self.references.dim() != 4 or len(self.references) == 0:
            raise ReferenceImageError(
                f"the references have shape {tuple(self.references.shape)}, expected (n, 3, h, w) with n of 1 or more; "
                "give at least one picture"
            )
        if hypernetwork is None:
            who: PredictConfig | PolishConfig = self.config.polish
            if self.config.sample.guidance == "reference-null":
                raise ConfigError(
                    "guidance 'reference-null' leads away from what a predictor says of a grey picture, and there is "
                    "no predictor; use another guidance, or name one"
                )
            if self.config.polish.steps == 0:
                raise ConfigError(
                    f"there is no predictor for {self.base.family.name!r} and the polishing steps are 0, so there is "
                    "nothing to make an identity with; set steps to 40 or so, or name a predictor"
                )
        else:
            who = self.config.predict
            self._check_predictor(hypernetwork)
        missing = "insert" if self.config.insert_identifier else "refuse"
        for prompt in self.config.prompts:
            self.prompts.append(insert_identifier(prompt, who.identifier, who.class_noun, missing))  # type: ignore[arg-type]

    def _check_predictor(self, hypernetwork: StoredHypernetwork) -> None:
        family = hypernetwork.network.config.family
        if family != self.base.family.name:
            raise BaseMismatchError(
                f"the predictor was trained for {family!r}, but the base is {self.base.family.name!r}; name a "
                "predictor for it, or none at all to polish from nothing"
            )
        fingerprint = getattr(self.base, "fingerprint", None)
        if hypernetwork.base_fingerprint and fingerprint and fingerprint() != hypernetwork.base_fingerprint:
            self.notes.append(
                "the predictor was trained on another checkpoint of this family; likeness before polishing may be lower"
            )

    def make_identity(self, hypernetwork: StoredHypernetwork | None) -> PolishResult:
        """Predict if there is a predictor, and polish."""
        if hypernetwork is not None:
            with self._timed("predict"):
                weights = self.prepared.weights if self.prepared else None
                predicted = predict_identity(hypernetwork.network, self.references, self.config.predict, weights)
            self.adapters["predicted"] = predicted
            if self.config.sample.guidance == "reference-null":
                self.neutral = neutral_identity(hypernetwork.network, self.references.shape[-1], self.config.predict)
            if self.config.polish.steps == 0:
                return PolishResult(predicted, (), 0.0)
        with self._timed("polish"), self.watch.stage("polish") as progress:
            start = self.adapters.get("predicted")
            polished = polish(
                self.base, self.references, start, self.config.polish, progress, captions=self.config.captions
            )
        self.adapters["polished"], self.losses = polished.identity, polished.losses
        return polished

    def save(self, made: PolishResult) -> None:
        """Write the identity and its LoRA."""
        name = self.config.name
        with self._timed("save"):
            self.results.keep(f"{name}.safetensors", lambda path: write_identity(path, made.identity, layout="stacked"))
            self.results.keep(
                f"{name}-lora.safetensors", lambda path: export_lora(made.identity, path, self.config.export)
            )

    def draw(self) -> None:
        """Draw every prompt with the base, the prediction and the polished identity, and lay all out."""
        config = replace(self.config.sample, size=self.config.sample.size or self.references.shape[-1])
        identity = self.identity
        assert identity is not None
        columns: dict[str, tuple[list[str], Subjects]] = {
            "base": ([without_identifier(prompt, identity.identifier) for prompt in self.prompts], None)
        }
        for label, drawn_as in self.adapters.items():
            columns[label] = (self.prompts, Subject(adapter=drawn_as, neutral=self.neutral))
        drawn = {}
        with self._timed("sample"):
            for label, (prompts, adapter) in columns.items():
                with self.watch.stage(f"draw, {label}") as progress:
                    drawn[label] = draw(self.base, prompts, adapter, config, progress).cpu()
        self.pictures = list(drawn.values())[-1]
        if self.watch.judge is not None:
            with self._timed("judge"):
                for label, pictures in drawn.items():
                    measured = self.watch.judge(pictures, self.references)
                    if not bool(measured.isnan().all()):
                        self.likeness[label] = float(measured.nanmean())
        for number, (prompt, picture) in enumerate(zip(self.prompts, self.pictures, strict=True), start=1):
            texts = {"prompt": prompt, "seed": str(config.seed + number - 1), "Software": "HyperDream"}
            self.results.keep(
                f"{self.config.name}-{number:02}.png",
                lambda path, picture=picture, texts=texts: save_image(path, picture, texts),  # type: ignore[misc]
            )
        self._lay_out(drawn)

    def _lay_out(self, drawn: Mapping[str, Tensor]) -> None:
        reference = self.references[0].cpu()
        rows = [
            [reference if row == 0 else None, *(p[row] for p in drawn.values())] for row in range(len(self.prompts))
        ]
        labels = ["reference"]
        for label in drawn:
            labels.append(f"{label}, likeness {self.likeness[label]:.2f}" if label in self.likeness else label)
        grid = labelled_grid(rows, labels, self.prompts, title=self.config.name)
        self.results.keep(f"{self.config.name}-grid.png", lambda path: save_image(path, grid))

    def report(self) -> dict[str, Any]:
        """Everything that happened, as JSON values."""
        identity = self.identity
        assert identity is not None
        return {
            "cancelled": self.cancelled,
            "base": {"family": self.base.family.name, "device": str(self.base.device), "dtype": str(self.base.dtype)},
            "references": list(self.references.shape),
            "prompts": self.prompts,
            "identity": {"rank": identity.rank, "target_set": identity.target_set, "made_by": dict(identity.made_by)},
            "seconds": {**self.seconds, "all": sum(self.seconds.values())},
            "losses": list(self.losses),
            "likeness": self.likeness,
            "likeness_by": self._likeness_by(),
            "faces": self.prepared.report() if self.prepared else None,
            "peak_memory_bytes": peak_memory(self.base.device),
            "files": {path.name: {"path": str(path), "bytes": path.stat().st_size} for path in self.results.written},
            "notes": self.notes,
            "config": config_to_json(self.config),
        }

    def _likeness_by(self) -> str:
        if self.watch.judge is not None and len(self.pictures) and not self.likeness:
            return "not measured: no face was found in what was drawn"
        return self.watch.likeness

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = round(time.perf_counter() - began, 3)


def peak_memory(device: torch.device | str = "cpu") -> dict[str, int]:
    """The largest memory this process has had so far, bytes: `process`, and `device` for a CUDA one.

    `process` is missing where the system does not tell (Windows).
    """
    peak = {}
    try:
        import resource
        import sys

        # The one number of this structure that has another unit on another system.
        unit = 1 if sys.platform == "darwin" else 1024
        peak["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    except ImportError:
        pass
    if torch.device(device).type == "cuda":
        peak["device"] = torch.cuda.max_memory_allocated(device)
    return peak
