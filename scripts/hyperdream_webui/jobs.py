"""What the tab and its API do, in the order of the work: look at photographs, make an identity, draw it, keep it."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hyperdream_core.errors import Cancelled, ConfigError, HyperDreamError, MissingDependencyError
from hyperdream_core.faces.detectors import DetectorName
from hyperdream_core.faces.face import FaceOrder
from hyperdream_core.faces.likeness import open_likeness
from hyperdream_core.faces.prepare import PrepareConfig, prepare_references
from hyperdream_core.faces.prepared_faces import Faces, report_text
from hyperdream_core.identity import Identity
from hyperdream_core.miniature.companions import companions_of
from hyperdream_core.ops.lowrank import LoraPair
from hyperdream_core.pictures.files import Picture, read_picture, to_pil
from hyperdream_core.pictures.grid import labelled_grid
from hyperdream_core.pipelines.drawing.few_steps import few_steps
from hyperdream_core.pipelines.polishing.polish import PolishConfig, polish
from hyperdream_core.pipelines.predictors.predict import PredictConfig
from hyperdream_core.pipelines.predictors.predictor import Predictor, open_predictor
from hyperdream_core.pipelines.progress import Progress
from hyperdream_core.pipelines.prompts import captions_of_lines, insert_identifier, without_identifier

from .lora_folder import LoraFolder

MINIATURE = "miniature"
CHECKPOINT = "checkpoint"
_CROP = 512
"""Side of the crops that are kept, px; other sizes are cut from the photographs when they are asked for."""
_MOST_PROMPTS = 4


@dataclass(frozen=True, kw_only=True)
class FaceChoice:
    """How the faces of photographs are found and chosen."""

    detector: DetectorName = "auto"
    order: FaceOrder = "size"
    face: int = 0
    """counted from 1; 0 takes the first"""
    on_no_face: str = "stop"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to make of photographs."""

    files: Sequence[str | Path]
    faces: FaceChoice = field(default_factory=FaceChoice)
    name: str = "face"
    on: str = CHECKPOINT
    """`checkpoint`, the one that is loaded, or `miniature`"""
    predict: bool = True
    """start from a prediction where a predictor fits"""
    steps: int = 40
    """of polishing; 0 keeps the prediction"""
    size: int = 0
    """side of the pictures trained on and drawn, px; 0 takes the checkpoint's own"""
    batch: int = PolishConfig.batch
    """noise draws in a step"""
    samples_at_once: int = PolishConfig.samples_at_once
    """of a batch that share a pass; fewer take less memory and give the same"""
    identifier: str = "sks"
    class_noun: str = "face"
    caption: str = ""
    """what the photographs show besides the person, one line for all or one for each"""
    prompts: str = "a [V] face"
    """what to draw for comparison, one in a line; nothing draws nothing"""
    draw_steps: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.on not in (CHECKPOINT, MINIATURE):
            raise ConfigError(f"on must be 'checkpoint' or 'miniature', got {self.on!r}; choose one of them")
        if not 0 <= self.steps <= 2000:
            raise ConfigError(f"steps must lie in 0..2000, got {self.steps}; 40 is usual after a prediction")
        if self.size < 0 or self.size % 64:
            raise ConfigError(f"size must be a multiple of 64 px, got {self.size}; 0 takes the checkpoint's own")
        if len(self.prompt_lines) > _MOST_PROMPTS:
            raise ConfigError(f"{len(self.prompt_lines)} prompts, expected at most {_MOST_PROMPTS}; leave some out")

    @property
    def prompt_lines(self) -> list[str]:
        return [line.strip() for line in self.prompts.splitlines() if line.strip()]


@dataclass(frozen=True, kw_only=True, eq=False)
class Created:
    """What came of it."""

    name: str
    """in the library"""
    prompt: str
    """draws this person in the host; empty if the host cannot"""
    grid: Image.Image | None
    likeness: float | None
    """mean of the pictures drawn with the identity"""
    likeness_before: float | None
    """of the pictures drawn without"""
    report: str
    infotext: str
    cancelled: bool


class Jobs:
    """The jobs.

    Args:
        webui: the host, a `host.WebUI`.
    """

    def __init__(self, webui: Any) -> None:
        self.webui = webui
        self.loras = LoraFolder(webui.lora_folder, webui.own_folder)

    def look(
        self, files: Sequence[str | Path], choice: FaceChoice, on: str = CHECKPOINT
    ) -> tuple[list[Image.Image], str]:
        """The photographs with their faces numbered, and what is to be said of them, for an identity made on `on`."""
        faces = self._faces(files, choice, on)
        return [one.preview() for one in faces.prepared.pictures], report_text(faces.prepared)

    def create(self, order: Order) -> Created:
        """Make an identity of photographs, keep it, and draw it beside the base.

        Raises:
            HyperDreamError: it cannot be done; says why and what to do.
        """
        began = time.perf_counter()
        faces = self._faces(order.files, order.faces, order.on)
        is_miniature = order.on == MINIATURE
        base = miniature_base() if is_miniature else self.webui.loaded_base()
        size = order.size or base.family.picture_size
        if is_miniature:
            size = base.family.picture_size
        notes = [*faces.prepared.notes]
        identity, how, cancelled = self._made(base, faces, order, size, notes)
        name = self.loras.put(identity, order.name)
        drawn, infotext = self._drawn(base, identity, name, order, size)
        before, after, by = self._likeness(drawn, faces, is_miniature)
        if drawn:
            self.loras.show(name, drawn[-1][1])
        self.webui.refresh_networks()
        lines = [f"{how}, {time.perf_counter() - began:.0f} s in all", f"likeness {by}", *notes]
        if cancelled:
            lines.insert(0, "stopped by you: the best so far is kept")
        return Created(
            name=name,
            prompt="" if is_miniature else self.loras.prompt(name),
            grid=self._grid(faces, drawn, order, size),
            likeness=after,
            likeness_before=before,
            report="\n".join(lines),
            infotext=infotext,
            cancelled=cancelled,
        )

    def _faces(self, files: Sequence[str | Path], choice: FaceChoice, on: str) -> Faces:
        if not files:
            raise ConfigError("there is no photograph; drop one or several of the same person first")
        pictures: list[Picture] = [read_picture(file) for file in files]
        config = PrepareConfig(
            # The miniature has only ever seen whole pictures, as its own renderer draws them.
            detector="already-cropped" if on == MINIATURE and choice.detector == "auto" else choice.detector,
            face_order=choice.order,
            face=choice.face,
            on_no_face=choice.on_no_face,  # type: ignore[arg-type]
            face_models=self.webui.face_model_folders,
        )
        return Faces(prepare_references(pictures, _CROP, config), config.margin)

    def _made(self, base: Any, faces: Faces, order: Order, size: int, notes: list[str]) -> tuple[Identity, str, bool]:
        """The identity, how it was made, and whether the user has stopped it."""
        family = base.family
        predictor = self.predictor_for(family.name) if order.predict else None
        start = None
        if predictor is not None:
            words = PredictConfig(identifier=order.identifier, class_noun=order.class_noun)
            start = predictor.predict(faces, words)[0]
        elif order.predict:
            notes.append(
                f"no predictor for {family.title} is in {self.webui.own_folder / 'predictors'}, so the identity is "
                "made by polishing alone, which wants 200 steps or more"
            )
        if order.steps == 0:
            if start is None:
                raise ConfigError(
                    f"nothing would be made: there is no predictor for {family.title} and the steps are 0; set the "
                    "steps to 200 or so, or create on the miniature"
                )
            return start, "predicted", False
        config = PolishConfig(
            steps=order.steps,
            batch=order.batch,
            samples_at_once=order.samples_at_once,
            seed=order.seed,
            identifier=order.identifier,
            class_noun=order.class_noun,
        )
        references = faces.at(size)
        captions: Sequence[str] = captions_of_lines(order.caption, len(references))
        if family.name == MINIATURE and not captions:
            captions = companions_of(family.name).read_captions(base, references)
        base.latest = {}
        watch = self._watch(base, start, config, size)
        try:
            with torch.inference_mode(False), torch.enable_grad():
                result = polish(base, references, start, config, watch, captions=captions)
        except torch.cuda.OutOfMemoryError as error:
            raise ConfigError(
                f"the graphics card ran out of memory while polishing at {size} px with {order.samples_at_once} "
                "samples at once; choose fewer of them, or a smaller size"
            ) from error
        how = f"{'predicted and polished' if start else 'polished'} for {len(result.losses)} steps"
        rate = result.seconds / max(1, len(result.losses))
        return result.identity, f"{how} of {rate:.2g} s", result.cancelled

    def _watch(self, base: Any, start: Identity | None, config: PolishConfig, size: int) -> Progress:
        """The host's bar, with pictures on the way where they cost next to nothing."""
        progress = self.webui.progress("polishing")
        shows = base.family.name == MINIATURE
        prompts = base.encode_prompt([f"a {config.identifier} {config.class_noun}", ""]) if shows else None
        first = {} if start is None else start.expand()

        def watch(step: int, total: int) -> None:
            picture = None
            if shows and prompts is not None and step % 10 == 0:
                with torch.no_grad():
                    latents = few_steps(base, base.latest or first, prompts, size)
                    picture = to_pil(base.decode_latents(latents)[0]).resize((256, 256))
            progress(step, total, picture)

        return watch

    def _drawn(
        self, base: Any, identity: Identity, name: str, order: Order, size: int
    ) -> tuple[list[tuple[Image.Image, Image.Image]], str]:
        """For each prompt the pictures without and with the identity, and the last infotext; fewer if stopped."""
        pairs: list[tuple[Image.Image, Image.Image]] = []
        infotext = ""
        for number, line in enumerate(order.prompt_lines):
            if self.webui.is_interrupted:
                break
            prompt = insert_identifier(line, identity.identifier, identity.class_noun, missing="insert")
            plain = without_identifier(prompt, identity.identifier)
            try:
                if order.on == MINIATURE:
                    pair = _miniature_pictures(base, identity, prompt, plain, order, number)
                else:
                    seed, lora = order.seed + number, f"<lora:{Path(name).stem}:1>"
                    before, _ = self.webui.draw(plain, seed, size, order.draw_steps)
                    after, infotext = self.webui.draw(f"{prompt} {lora}", seed, size, order.draw_steps)
                    pair = before, after
            except Cancelled:
                break
            pairs.append(pair)
        return pairs, infotext

    def _grid(
        self, faces: Faces, drawn: list[tuple[Image.Image, Image.Image]], order: Order, size: int
    ) -> Image.Image | None:
        """The photograph, and before and after for each prompt."""
        if not drawn:
            return None
        reference = faces.at(size)[0].cpu()
        rows = [
            [reference if row == 0 else None, _pixels(before), _pixels(after)]
            for row, (before, after) in enumerate(drawn)
        ]
        labels = ["photograph", "without", "with the identity"]
        prompts = order.prompt_lines[: len(drawn)]
        return labelled_grid(rows, labels, prompts, title=order.name, font_file=self.webui.font_file)

    def _likeness(
        self, drawn: list[tuple[Image.Image, Image.Image]], faces: Faces, is_miniature: bool
    ) -> tuple[float | None, float | None, str]:
        """Likeness before and after, and who measured it or why nobody did."""
        if not drawn:
            return None, None, "not measured: nothing was drawn"
        sides = [torch.stack([_pixels(pair[side]) for pair in drawn]) for side in (0, 1)]
        own = companions_of(MINIATURE).own_recognizer() if is_miniature else None
        measure, by = open_likeness(faces, own, folders=() if is_miniature else self.webui.face_model_folders)
        if measure is None:
            return None, None, by
        before, after = (_mean(measure(pictures)) for pictures in sides)
        return before, after, by

    def predictor_for(self, family: str) -> Predictor | None:
        """The predictor for a base family: the miniature's own, or the newest in models/hyperdream/predictors."""
        if family == MINIATURE:
            return open_predictor(MINIATURE)
        files = sorted((self.webui.own_folder / "predictors").glob("*.safetensors"), key=lambda p: -p.stat().st_mtime)
        for file in files:
            try:
                stored = _predictor(file, file.stat().st_mtime_ns)
            except HyperDreamError:
                # Somebody else's file, or a predictor of a newer release; the next one may fit.
                continue
            if stored.family == family:
                return stored
        return None


@lru_cache(maxsize=2)
def _predictor(path: Path, changed: int) -> Predictor:
    return open_predictor(path)


@lru_cache(maxsize=1)
def miniature_base() -> Any:
    """The miniature, read once.

    Raises:
        MissingDependencyError: diffusers or accelerate is missing.
    """
    for package, wanted in (("diffusers", "diffusers==0.32.2"), ("accelerate", "accelerate")):
        if find_spec(package) is None:
            raise MissingDependencyError(package, f'"{sys.executable}" -m pip install --no-deps {wanted}')
    from hyperdream_core.pipelines.diffusers.loading import load_base

    return WatchedBase(load_base(MINIATURE))


class WatchedBase:
    """A base that remembers the adapters it was last run with, to be drawn with while they are trained."""

    def __init__(self, base: Any) -> None:
        self._base = base
        self.latest: dict[str, LoraPair] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)

    def adapted(self, pairs: Mapping[str, LoraPair], *arguments: Any, **named: Any) -> Any:
        """As the base's own."""
        self.latest = {name: LoraPair(pair.down.detach(), pair.up.detach()) for name, pair in pairs.items()}
        return self._base.adapted(pairs, *arguments, **named)


def _miniature_pictures(
    base: Any, identity: Identity, prompt: str, plain: str, order: Order, number: int
) -> tuple[Image.Image, Image.Image]:
    from hyperdream_core.pipelines.drawing.draw import DrawConfig, draw

    config = DrawConfig(steps=order.draw_steps, seed=order.seed + number)
    before, after = draw(base, [plain], None, config), draw(base, [prompt], identity, config)
    return to_pil(before[0].cpu()), to_pil(after[0].cpu())


def _pixels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 255).movedim(-1, 0)


def _mean(values: Tensor) -> float | None:
    mean = float(values.nanmean())
    return None if math.isnan(mean) else mean
