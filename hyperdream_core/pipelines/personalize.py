"""The whole job: pictures of a subject in; its identity, a LoRA, pictures, a labelled grid and a report out.

What can be refused is refused before the work begins, and each result is written as soon as it is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..bases import BaseFamily
from ..config import config_to_json
from ..errors import Cancelled, ConfigError, quoted
from ..faces.prepared_faces import Faces
from ..formats.file_names import check_name
from ..formats.identity_file import write_identity
from ..identity import Identity
from ..pictures.files import save_image
from ..pictures.grid import labelled_grid
from .base import Base
from .before_work import bytes_of_identity, bytes_of_pictures, check_prompts, check_texts
from .companions import Companions
from .drawing.draw import DrawConfig, draw
from .drawing.subjects import Subject, Subjects
from .export import ExportConfig, export_lora
from .make_identity import MakeIdentityConfig, Watch, check_job, make_identity
from .polishing.memory import Memory
from .polishing.polish_config import PolishConfig
from .predictors.predict import PredictConfig
from .predictors.predictor import Predictor
from .prompts import insert_identifier, without_identifier
from .results_folder import ResultsFolder

Judge = Callable[[Tensor], Tensor]
"""Likeness (b,) of pictures (b, 3, h, w) to the subject; NaN where it cannot be measured."""


@dataclass(frozen=True, kw_only=True)
class Onlookers(Watch):
    """Who looks on: progress of each stage, and a judge of likeness."""

    judge: Judge | None = None
    judged: str = "not measured: there is no judge"
    """who measures likeness, or why nobody does"""


@dataclass(frozen=True, kw_only=True)
class PersonalizeConfig:
    """Settings of the whole job."""

    prompts: tuple[str, ...] = ("a [V] face",)
    """What to draw; [V] stands for the subject."""
    captions: tuple[str, ...] | None = None
    """What each picture shows besides the subject; see `make_identity`."""
    name: str = "subject"
    """What the files are called."""
    insert_identifier: bool = False
    """Put the identifier into prompts that lack it, instead of refusing them."""
    predict: PredictConfig = field(default_factory=PredictConfig)
    """Settings of the prediction."""
    polish: PolishConfig = field(default_factory=PolishConfig)
    """Settings of the polishing."""
    draw: DrawConfig = field(default_factory=DrawConfig)
    """Settings of the drawing."""
    export: ExportConfig = field(default_factory=ExportConfig)
    """Settings of the LoRA."""
    memory: Memory = "automatic"
    """Whether polishing may compute blocks of the UNet twice; see `make_identity`."""

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ConfigError("prompts is empty, expected at least one; say what to draw, such as 'a [V] face'")
        check_name(self.name)
        check_texts(prompts=self.prompts, captions=self.captions or (), negative_prompt=self.draw.negative_prompt)

    def file_names(self) -> list[str]:
        """What will be written."""
        ends = (".safetensors", "-lora.safetensors", "-report.json", "-grid.png")
        return [self.name + end for end in ends] + [self.picture_name(n + 1) for n in range(len(self.prompts))]

    def picture_name(self, number: int) -> str:
        """Of a prompt, counted from 1."""
        return f"{self.name}-{number:02}.png"

    def bytes_written(self, family: BaseFamily) -> int:
        """About how much it will be, at the most."""
        side = self.draw.size or family.picture_size
        # A prediction of rank 16 would be large, and its own is known only when it is there.
        identity = bytes_of_identity(family, self.polish.target_set, self.polish.rank + 16)
        # The grid has a cell of 256 px for each of four columns.
        return identity + bytes_of_pictures(len(self.prompts), side) + bytes_of_pictures(4 * len(self.prompts), 300)


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
    faces: Faces,
    results: ResultsFolder,
    config: PersonalizeConfig | None = None,
    predictor: Predictor | None = None,
    companions: Companions | None = None,
    watch: Onlookers | None = None,
) -> PersonalizeResult:
    """Predict, polish, save, export and draw one subject.

    Args:
        base: to personalize.
        faces: of the subject.
        results: where everything goes; `ResultsFolder.open` has checked that it can be written.
        config: settings.
        predictor: for the base's family; None polishes from scratch.
        companions: of the base's family.
        watch: who looks on.

    Raises:
        PromptError: a prompt does not name the subject.
        BaseMismatchError: the predictor is for another base family.
        OutputError: something could not be written where it belongs; says where it is instead.
    """
    job = _Job(base, faces, results, config or PersonalizeConfig(), watch or Onlookers())
    job.check(predictor)
    try:
        job.make(predictor, companions)
        job.save()
        if not job.made.cancelled:
            job.draw()
    except (Cancelled, KeyboardInterrupt):
        # Without an identity there is nothing to keep.
        if not job.adapters:
            raise
        job.cancelled = True
    report = job.report()
    results.keep_json(f"{job.config.name}-report.json", report)
    results.close()
    return PersonalizeResult(job.made.identity, job.pictures, report, tuple(results.written), job.cancelled)


class _Job:
    """One personalisation at work."""

    def __init__(
        self,
        base: Base,
        faces: Faces,
        results: ResultsFolder,
        config: PersonalizeConfig,
        watch: Onlookers,
    ) -> None:
        self.base, self.faces, self.results, self.config, self.watch = base, faces, results, config, watch
        self.size = config.draw.size or base.family.picture_size
        self.seconds: dict[str, float] = {}
        self.notes: list[str] = []
        self.adapters: dict[str, Identity] = {}
        """predicted and polished, as far as they are there"""
        self.likeness: dict[str, float] = {}
        self.pictures = torch.zeros(0, 3, self.size, self.size)
        self.prompts: list[str] = []
        self.cancelled = False

    @property
    def job(self) -> MakeIdentityConfig:
        """The settings of the part that makes the identity."""
        return MakeIdentityConfig(
            predict=self.config.predict,
            polish=self.config.polish,
            captions=self.config.captions,
            size=self.size,
            neutral=self.config.draw.guidance == "reference-null",
            memory=self.config.memory,
        )

    def check(self, predictor: Predictor | None) -> None:
        """Refuse what would fail later on."""
        check_job(self.base.family.name, self.job, predictor)
        words = self.config.predict
        missing: Literal["insert", "refuse"] = "insert" if self.config.insert_identifier else "refuse"
        for prompt in self.config.prompts:
            self.prompts.append(insert_identifier(prompt, words.identifier, words.class_noun, missing))
        self.notes += check_prompts(self.base, self.prompts, words.identifier)
        fingerprint = getattr(self.base, "fingerprint", None)
        if predictor is not None and predictor.fingerprint and fingerprint is not None:
            theirs, ours = predictor.fingerprint, fingerprint()
            if theirs != ours:
                named = quoted(predictor.training.get("base") or "not named", 60)
                self.notes.append(
                    f"the predictor was trained on another checkpoint of this family ({named}, {theirs[:8]}) than the "
                    f"one at work ({ours[:8]}); likeness before polishing may be lower"
                )

    def make(self, predictor: Predictor | None, companions: Companions | None) -> None:
        """Predict if there is a predictor, and polish."""
        self.made = make_identity(self.base, self.faces, self.job, predictor, companions, self.watch)
        self.seconds |= self.made.seconds
        self.cancelled = self.made.cancelled
        self.notes += self.made.notes
        if self.made.predicted is not None:
            self.adapters["predicted"] = self.made.predicted
        if self.made.identity is not self.made.predicted:
            self.adapters["polished"] = self.made.identity

    def save(self) -> None:
        """Write the identity and its LoRA."""
        name, identity = self.config.name, self.made.identity
        earlier = self.results.path / f"{name}.safetensors"
        if self.made.cancelled and not self.made.losses and earlier.exists():
            self.adapters.clear()
            raise Cancelled(f"stopped before the first step of polishing; {earlier}, made earlier, is as it was")
        with self._timed("save"):
            self.results.keep(f"{name}.safetensors", lambda path: write_identity(path, identity, layout="stacked"))
            self.results.keep(f"{name}-lora.safetensors", lambda path: export_lora(identity, path, self.config.export))

    def draw(self) -> None:
        """Draw every prompt with the base, the prediction and the polished identity, and lay all out."""
        config = replace(self.config.draw, size=self.size)
        identity = self.made.identity
        columns: dict[str, tuple[list[str], Subjects]] = {
            "base": ([without_identifier(prompt, identity.identifier) for prompt in self.prompts], None)
        }
        for label, drawn_as in self.adapters.items():
            columns[label] = (self.prompts, Subject(adapter=drawn_as, neutral=self.made.neutral))
        drawn = {}
        with self._timed("draw"):
            for label, (prompts, adapter) in columns.items():
                with self.watch.stage(f"draw, {label}") as progress:
                    drawn[label] = draw(self.base, prompts, adapter, config, progress).cpu()
        self.pictures = list(drawn.values())[-1]
        if self.watch.judge is not None:
            with self._timed("judge"):
                for label, pictures in drawn.items():
                    measured = self.watch.judge(pictures)
                    if not bool(measured.isnan().all()):
                        self.likeness[label] = float(measured.nanmean())
        for number, (prompt, picture) in enumerate(zip(self.prompts, self.pictures, strict=True), start=1):
            texts = {"prompt": prompt, "seed": str(config.seed + number - 1), "Software": "HyperDream"}
            self.results.keep(
                self.config.picture_name(number),
                lambda path, picture=picture, texts=texts: save_image(path, picture, texts),  # type: ignore[misc]
            )
        self._lay_out(drawn)

    def _lay_out(self, drawn: Mapping[str, Tensor]) -> None:
        reference = self.faces.at(self.size)[0].cpu()
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
        identity = self.made.identity
        return {
            "cancelled": self.cancelled,
            "base": {"family": self.base.family.name, "device": str(self.base.device), "dtype": str(self.base.dtype)},
            "prediction_type": self.base.noise.name,
            "assumptions": list(getattr(self.base, "assumptions", ())),
            "references": [len(self.faces.used), 3, self.size, self.size],
            "prompts": self.prompts,
            "identity": {"rank": identity.rank, "target_set": identity.target_set, "made_by": dict(identity.made_by)},
            "seconds": {**self.seconds, "all": sum(self.seconds.values())},
            "losses": list(self.made.losses),
            "captions": list(self.made.captions),
            "likeness": self.likeness,
            "likeness_by": self._likeness_by(),
            "faces": self.faces.prepared.report(),
            "peak_memory_bytes": peak_memory(self.base.device),
            "files": {path.name: {"path": str(path), "bytes": path.stat().st_size} for path in self.results.written},
            "notes": self.notes,
            "config": config_to_json(self.config),
        }

    def _likeness_by(self) -> str:
        if self.watch.judge is not None and len(self.pictures) and not self.likeness:
            return "not measured: no face was found in what was drawn"
        return self.watch.judged

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
