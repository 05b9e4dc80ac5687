"""What the tab and its API do, in the order of the work: look at photographs, make an identity, keep it, draw it."""

from __future__ import annotations

import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hyperdream_core.errors import Cancelled, ConfigError, HyperDreamError, OutputError
from hyperdream_core.faces.likeness import Likeness, open_likeness
from hyperdream_core.faces.prepare import PrepareConfig, prepare_references
from hyperdream_core.faces.prepared_faces import Faces, report_text
from hyperdream_core.formats.file_names import SUFFIX, check_name
from hyperdream_core.formats.identity_file import write_identity
from hyperdream_core.identity import Identity
from hyperdream_core.miniature.companions import companions_of
from hyperdream_core.ops.lowrank import LoraPair
from hyperdream_core.pictures.files import read_picture, to_pil
from hyperdream_core.pictures.grid import labelled_grid
from hyperdream_core.pipelines.drawing.few_steps import few_steps
from hyperdream_core.pipelines.make_identity import (
    MadeIdentity,
    MakeIdentityConfig,
    Watch,
    check_job,
    make_identity,
    plan_for,
)
from hyperdream_core.pipelines.polishing.memory import Plan
from hyperdream_core.pipelines.polishing.polish_config import STEPS_FROM_SCRATCH, PolishConfig
from hyperdream_core.pipelines.predictors.predict import PredictConfig
from hyperdream_core.pipelines.predictors.predictor import Predictor
from hyperdream_core.pipelines.progress import Progress
from hyperdream_core.pipelines.prompts import captions_of_lines, insert_identifier, without_identifier
from hyperdream_core.pipelines.results_folder import ResultsFolder

from . import shipped_bases
from .lora_folder import LoraFolder
from .orders import CHECKPOINT, LARGEST_SEED, Created, FaceChoice, Order

_CROP = 512
"""Side of the crops that are kept, px; other sizes are cut from the photographs when they are asked for."""
_PREVIEW_EVERY = 10

Pair = list[Image.Image]
"""a picture without and one with the identity"""


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
        with _by_name(files):
            faces = self._faces(files, choice, on)
        return [one.preview() for one in faces.prepared.pictures], _named(report_text(faces.prepared), files)

    def create(self, order: Order) -> Created:
        """Make an identity of photographs, keep it, and draw it beside the base.

        Raises:
            HyperDreamError: it cannot be done; says why and what to do.
        """
        began = time.perf_counter()
        if order.seed < 0:
            order = replace(order, seed=secrets.randbelow(LARGEST_SEED + 1))
        # First of all the base: what cannot be polished on is refused before the photographs are searched.
        base = self.webui.loaded_base() if order.on == CHECKPOINT else shipped_bases.shipped_base(order.on)
        predictor, passed_over = self.predictor_for(base.family.name) if order.predict else (None, [])
        config = _config(order, base)
        check_job(base.family.name, config, predictor, keep_in=self.loras.folder_for(base.family.name))
        plan = plan_for(base, config, predictor is not None)
        with _by_name(order.files):
            faces = self._faces(order.files, order.faces, order.on)
        # Opened before the work: a detector or recogniser that cannot be loaded is refused now.
        judge = self._judge(faces, base.family.name)
        made = self._made(base, faces, order, replace(config, size=plan.size), (predictor, plan))
        name = self._kept(made.identity, order.name)
        size = config.size or base.family.picture_size
        drawn, infotext = self._drawn(base, made.identity, name, order, size)
        before, after, by = _likeness(drawn, *judge)
        if drawn:
            self.loras.show(name, drawn[-1][1])
        self.webui.refresh_networks()
        lines = [
            f"{_how(made)}, {time.perf_counter() - began:.0f} s in all, seed {order.seed}",
            f"likeness {by}",
            *(_named(note, order.files) for note in faces.prepared.notes),
            *made.notes,
            *passed_over,
        ]
        if order.predict and predictor is None:
            lines.append(
                f"no predictor for {base.family.title} is in {self.webui.own_folder / 'predictors'}, so the identity "
                f"is made by polishing alone, which takes {STEPS_FROM_SCRATCH} steps or more"
            )
        if made.cancelled:
            lines.insert(0, "stopped by you: the best so far is kept")
        return Created(
            name=name,
            prompt=self.loras.prompt(name) if order.on == CHECKPOINT else "",
            grid=self._grid(faces, drawn, order, size),
            likeness=after,
            likeness_before=before,
            report="\n".join(lines),
            infotext=infotext,
            cancelled=made.cancelled,
        )

    def predictor_for(self, family: str) -> tuple[Predictor | None, list[str]]:
        """The predictor for a base family: its own, or the newest in models/hyperdream/predictors; and notes."""
        return shipped_bases.predictor_for(family, self.webui.own_folder / "predictors")

    def _faces(self, files: Sequence[str | Path], choice: FaceChoice, on: str) -> Faces:
        if not files:
            raise ConfigError("there is no photograph; drop one or several of the same person first")
        is_whole = companions_of(on).whole_pictures and choice.detector == "auto"
        config = PrepareConfig(
            detector="already-cropped" if is_whole else choice.detector,
            face_order=choice.order,
            face=choice.face,
            on_no_face=choice.on_no_face,
            face_models=self.webui.face_model_folders,
        )
        return Faces(prepare_references([read_picture(file) for file in files], _CROP, config), config.margin)

    def _made(
        self,
        base: Any,
        faces: Faces,
        order: Order,
        config: MakeIdentityConfig,
        means: tuple[Predictor | None, Plan],
    ) -> MadeIdentity:
        """The identity, with the host's bar and pictures on the way where they cost next to nothing."""
        companions = companions_of(base.family.name)
        captions = captions_of_lines(order.caption, len(faces.used)) or None
        bar = self.webui.progress("polishing")

        @contextmanager
        def stage(label: str) -> Iterator[Progress]:
            yield bar

        size = config.size or base.family.picture_size
        prompts = [f"a {order.identifier} {order.class_noun}", ""]

        @torch.no_grad()
        def see(step: int, total: int, current: Callable[[], Mapping[str, LoraPair]]) -> None:
            if step % _PREVIEW_EVERY == 0:
                latents = few_steps(base, current(), base.encode_prompt(prompts), size)
                bar(step, total, to_pil(base.decode_latents(latents)[0]).resize((256, 256)))

        watch = Watch(stage=stage, polishing=see if companions.draws_in_no_time else None)
        return make_identity(
            base,
            faces,
            replace(config, captions=captions),
            means[0],
            companions,
            watch,
            plan=means[1],
        )

    def _drawn(self, base: Any, identity: Identity, name: str, order: Order, size: int) -> tuple[list[Pair], str]:
        """For each prompt the pictures without and with the identity, and the last infotext; fewer if stopped."""
        pairs: list[Pair] = []
        infotext = ""
        for number, line in enumerate(order.prompt_lines):
            if self.webui.is_interrupted:
                break
            prompt = insert_identifier(line, identity.identifier, identity.class_noun, missing="insert")
            plain, seed = without_identifier(prompt, identity.identifier), order.seed + number
            try:
                if order.on == CHECKPOINT:
                    lora = f"<lora:{Path(name).stem}:1>"
                    before, _ = self.webui.draw(plain, seed, size, order.draw_steps)
                    after, infotext = self.webui.draw(f"{prompt} {lora}", seed, size, order.draw_steps)
                    pair = [before, after]
                else:
                    pair = shipped_bases.drawn_beside(base, identity, (plain, prompt), order.draw_steps, seed)
            except Cancelled:
                break
            pairs.append(pair)
        return pairs, infotext

    def _grid(self, faces: Faces, drawn: list[Pair], order: Order, size: int) -> Image.Image | None:
        """The photograph, and before and after for each prompt."""
        if not drawn:
            return None
        reference = faces.at(size)[0].cpu()
        rows = [[reference if row == 0 else None, *map(_pixels, pair)] for row, pair in enumerate(drawn)]
        labels = ["photograph", "without", "with the identity"]
        prompts = order.prompt_lines[: len(drawn)]
        return labelled_grid(rows, labels, prompts, title=order.name, font_file=self.webui.font_file)

    def _judge(self, faces: Faces, family: str) -> tuple[Likeness | None, str]:
        """Who measures likeness, or why nobody does."""
        return open_likeness(faces, companions_of(family).own_recognizer(), folders=self.webui.face_model_folders)

    def _kept(self, identity: Identity, name: str) -> str:
        """The identity in the library; its name there.

        Raises:
            OutputError: it cannot be put there after all; says where it is instead.
        """
        try:
            return self.loras.put(identity, name)
        except OutputError as error:
            results = ResultsFolder(self.loras.folder_for(identity.family))
            path = results.keep(check_name(name) + SUFFIX, lambda path: write_identity(path, identity))
            results.close()
            raise OutputError(f"{error}; the identity itself is kept: {path}") from error


def _likeness(drawn: list[Pair], measure: Likeness | None, by: str) -> tuple[float | None, float | None, str]:
    """Likeness before and after, and who measured it or why nobody did."""
    if not drawn or measure is None:
        return None, None, by if drawn else "not measured: nothing was drawn"
    before, after = (_mean(measure(torch.stack([_pixels(pair[side]) for pair in drawn]))) for side in (0, 1))
    return before, after, by


def _config(order: Order, base: Any) -> MakeIdentityConfig:
    """The core's settings for an order; its captions follow once it is known how many photographs are used."""
    return MakeIdentityConfig(
        predict=PredictConfig(identifier=order.identifier, class_noun=order.class_noun),
        polish=PolishConfig(
            steps=None if order.steps < 0 else order.steps,
            batch=order.batch,
            samples_at_once=order.samples_at_once,
            seed=order.seed,
            identifier=order.identifier,
            class_noun=order.class_noun,
        ),
        # A base of ours draws at its own size only.
        size=order.size if order.on == CHECKPOINT else base.family.picture_size,
    )


def _named(text: str, files: Sequence[str | Path]) -> str:
    """A text with the photographs called by their names: the host keeps them in a folder that nobody has heard of."""
    for file in files:
        text = text.replace(f"{Path(file).parent}{os.sep}", "")
    return text


@contextmanager
def _by_name(files: Sequence[str | Path]) -> Iterator[None]:
    """Errors that call the photographs by their names."""
    try:
        yield
    except HyperDreamError as error:
        error.args = tuple(_named(one, files) if isinstance(one, str) else one for one in error.args)
        raise


def _how(made: MadeIdentity) -> str:
    if not made.losses:
        return made.how
    return f"{made.how} of {made.seconds['polish'] / len(made.losses):.2g} s"


def _pixels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 255).movedim(-1, 0)


def _mean(values: Tensor) -> float | None:
    mean = float(values.nanmean())
    return None if math.isnan(mean) else mean
