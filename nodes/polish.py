"""Polishing on a ComfyUI model, watched: memory asked for, pictures on the way, curves, and nothing lost on Stop."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..hyperdream_core.bases import BaseFamily
from ..hyperdream_core.errors import BaseMismatchError, ConfigError
from ..hyperdream_core.faces.likeness import Likeness, open_likeness
from ..hyperdream_core.faces.prepared_faces import Faces
from ..hyperdream_core.formats.file_names import free_file
from ..hyperdream_core.formats.identity_file import write_identity
from ..hyperdream_core.identity import Identity
from ..hyperdream_core.miniature.companions import companions_of
from ..hyperdream_core.pictures.curves import Curves, draw_curves
from ..hyperdream_core.pictures.files import to_pil
from ..hyperdream_core.pipelines.drawing.few_steps import few_steps
from ..hyperdream_core.pipelines.polishing.polish import PolishConfig, PolishResult
from ..hyperdream_core.pipelines.polishing.polish import polish as run_polish
from ..hyperdream_core.pipelines.prompts import captions_of_lines
from .comfy_base import ComfyBase
from .host import folders, models, run, training

# Measured on a full SD 1.5 at 256 px in fp32, one sample: 3.2 GB beside the weights, which is this many numbers per
# latent position and channel of the first block; recomputing leaves about a quarter.
_NUMBERS_PER_POSITION = 2450
_RECOMPUTED_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class PolishOptions:
    """What a host adds to the core's settings."""

    size: int = 0
    """side of the pictures trained on, px; 0 takes the family's own"""
    memory: str = "automatic"
    """`fast`, `save memory`, or the one that fits"""
    preview_every: int = 10
    """steps between preview pictures; 0 shows none"""
    goes_on: bool = False
    """after Stop, hand on what there is instead of ending the prompt"""


def polish(
    loaded: tuple[Any, Any, Any],
    faces: Faces,
    start: Identity | None,
    caption: str,
    config: PolishConfig,
    options: PolishOptions,
) -> tuple[Identity, Tensor]:
    """Train an identity on the loaded model, which is bit for bit as before afterwards.

    Args:
        loaded: MODEL, CLIP and VAE.
        faces: of the subject.
        start: prediction to start from; None starts from nothing.
        caption: what the pictures show besides the subject, one line for all or one for each; if it is empty, the
            miniature reads it off them, and other checkpoints go without.
        config: of the training.
        options: of the host.

    Returns:
        The identity and its curves as a picture (1, h, w, 3).
    """
    family = models.family_of(loaded[0])
    if start is not None and start.family != family.name:
        raise BaseMismatchError(
            f"the identity was made for {start.family!r}, but the model is {family.name!r}; leave the identity away to "
            f"start from nothing, or load a checkpoint of {start.family!r}"
        )
    size = options.size or family.picture_size
    if size % family.vae_factor:
        raise ConfigError(f"size must be a multiple of {family.vae_factor} px, got {size}")
    largest = max(config.batch, config.preserve_batch) if start is not None and config.preserve else config.batch
    base = _base(loaded, family, size, min(largest, config.samples_at_once), options)
    references = faces.at(size)
    watch = _Watch(base, loaded[2], faces, references, config, options.preview_every, start)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            captions = captions_of_lines(caption, len(references)) or _captions_read_off(base, faces)
            result = run_polish(base, references, start, config, watch, captions=captions)
    except torch.cuda.OutOfMemoryError as error:
        raise ConfigError(
            f"the graphics card ran out of memory while polishing at {size} px; use Polish Identity (Advanced) with "
            "memory set to 'save memory', fewer samples at once or a smaller size"
        ) from error
    finally:
        run.tidy_up()
    if result.cancelled:
        _keep(result)
        if not options.goes_on:
            run.stop_prompt()
    return result.identity, watch.curves(result.losses)


def _captions_read_off(base: ComfyBase, faces: Faces) -> tuple[str, ...]:
    """As the command line does, where the words that the base was taught are on record."""
    companions = companions_of(base.family.name)
    if companions.describe is None:
        return ()
    base.load()
    return tuple(companions.read_captions(base, faces.at(base.family.picture_size)))


def bytes_needed(family: BaseFamily, size: int, batch: int, number_size: int, saves_memory: bool) -> float:
    """Memory (bytes) that polishing takes beside the model's weights, estimated."""
    positions = (size / family.vae_factor) ** 2
    numbers = _NUMBERS_PER_POSITION * family.unet.channels[0] * positions * batch
    return numbers * number_size * (_RECOMPUTED_SHARE if saves_memory else 1.0)


def _base(loaded: tuple[Any, Any, Any], family: BaseFamily, size: int, batch: int, options: PolishOptions) -> ComfyBase:
    model = loaded[0]
    number_size = torch.finfo(models.inference_dtype(model)).bits // 8
    free = training.room_beside(model)
    fast, lean = (bytes_needed(family, size, batch, number_size, saves) for saves in (False, True))
    saves_memory = options.memory == "save memory" or (options.memory == "automatic" and fast > free)
    needed = lean if saves_memory else fast
    if needed > free:
        raise ConfigError(
            f"polishing at {size} px with {batch} samples at once needs about {needed / 1e9:.1f} GB beside the model, "
            f"but {max(free, 0) / 1e9:.1f} GB can be made free; use Polish Identity (Advanced) with memory set to "
            "'save memory', fewer samples at once or a smaller size"
        )
    return ComfyBase(*loaded, bytes_needed=needed, saves_memory=saves_memory)


def _keep(result: PolishResult) -> Path | None:
    """Save what a stopped run has reached, if it has reached anything."""
    if not result.losses:
        return None
    path = free_file(folders.output_folder("hyperdream"), f"stopped-{time.strftime('%Y%m%d-%H%M%S')}")
    write_identity(path, replace(result.identity, made_by={**result.identity.made_by, "stopped": "by the user"}))
    run.say(f"HyperDream: polishing was stopped after {len(result.losses)} steps; the best so far is kept in {path}")
    return path


class _Watch:
    """The progress of one run: the node's bar, preview pictures, and how the likeness grows."""

    def __init__(
        self,
        base: ComfyBase,
        vae: Any,
        faces: Faces,
        references: Tensor,
        config: PolishConfig,
        every: int,
        start: Identity | None,
    ) -> None:
        self._base, self._references, self._every = base, references, every
        self._bar = run.Bar(config.steps_from(start is not None))
        self._decodes = models.is_small(vae)
        own = companions_of(base.family.name).own_recognizer()
        self._judge: Likeness | None = open_likeness(faces, own)[0] if own is not None else None
        self._start = {} if start is None else start.expand()
        who = start or config
        self._prompts = [f"a {who.identifier} {who.class_noun}", ""]
        self._look = None if self._decodes else models.latent_preview(base.patcher)
        self._likeness: list[tuple[float, float]] = []
        self._seen = -1

    def __call__(self, step: int, total: int) -> None:
        # The core asks several times before the first step, while it draws what is to be preserved.
        is_due = self._every and step != self._seen and (step % self._every == 0 or step == total)
        self._seen = step
        self._bar(step, total, self._picture(step) if is_due else None)

    def curves(self, losses: tuple[float, ...]) -> Tensor:
        """The error of every step, and the likeness where it was measured, as a picture (1, h, w, 3)."""
        width = max(1, len(losses) // 10)
        smooth = [
            (float(step + 1), float(np.mean(losses[max(0, step - width) : step + 1]))) for step in range(len(losses))
        ]
        sheets = [_sheet("error", f"averaged over {width} steps" if width > 1 else "of each step", smooth)]
        if self._likeness:
            sheets.append(_sheet("likeness", "by a judge that is never trained with", self._likeness))
        sheet = Image.new("RGB", (sum(one.width for one in sheets), sheets[0].height))
        for index, one in enumerate(sheets):
            sheet.paste(one, (index * sheets[0].width, 0))
        return torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255)[None]

    @torch.no_grad()
    def _picture(self, step: int) -> Image.Image | None:
        if not self._decodes and self._look is None:
            return None
        prompts = self._base.encode_prompt(self._prompts)
        latents = few_steps(self._base, self._base.latest or self._start, prompts, self._references.shape[-1])
        if self._look is not None:
            return self._look(latents)
        picture = self._base.decode_latents(latents)
        if self._judge is not None:
            self._likeness.append((float(step), float(self._judge(picture).mean())))
        return to_pil(picture[0])


def _sheet(name: str, how: str, points: list[tuple[float, float]]) -> Image.Image:
    panels: dict[str, Curves] = {name: {name: points}}
    return draw_curves(panels, "step", how, side=360)
