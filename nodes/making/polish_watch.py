"""What a user sees of a polishing run: the node's bar, preview pictures, and curves of error and likeness."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...hyperdream_core.faces.likeness import Likeness, open_likeness
from ...hyperdream_core.faces.prepared_faces import Faces
from ...hyperdream_core.miniature.companions import companions_of
from ...hyperdream_core.ops.finite import is_finite
from ...hyperdream_core.ops.lowrank import LoraPair
from ...hyperdream_core.pictures.curves import Curves, draw_curves
from ...hyperdream_core.pictures.files import to_pil
from ...hyperdream_core.pipelines.drawing.few_steps import few_steps
from ..host import models, run
from .comfy_base import ComfyBase


class Named(Protocol):
    """Whoever says what the person is called in prompts."""

    @property
    def identifier(self) -> str: ...

    @property
    def class_noun(self) -> str: ...


class PolishWatch:
    """The progress of one run.

    Args:
        base: that is polished on.
        vae: decodes the preview pictures, if it is small.
        faces: of the person, to measure likeness to.
        size: side of the preview pictures, px.
        named: an identity or settings that say what the person is called.
        every: steps between preview pictures; 0 shows none.
    """

    def __init__(self, base: ComfyBase, vae: Any, faces: Faces, size: int, named: Named, every: int) -> None:
        self._base, self._size, self._every = base, size, every
        self._bar = run.Bar()
        self._decodes = models.is_small(vae)
        own = companions_of(base.family.name).own_recognizer()
        self._judge: Likeness | None = open_likeness(faces, own)[0] if own is not None else None
        self._prompts = [f"a {named.identifier} {named.class_noun}", ""]
        self._look = None if self._decodes else models.latent_preview(base.patcher)
        self._likeness: list[tuple[float, float]] = []

    def progress(self, step: int, total: int) -> None:
        """Move the bar, and notice Stop; the core asks before the first step too, while it draws what to preserve."""
        self._bar(step, total)

    def see(self, step: int, total: int, current: Callable[[], Mapping[str, LoraPair]]) -> None:
        """Show a picture by the identity as it is now, where one is due."""
        if self._every and (step % self._every == 0 or step == total):
            picture = self._picture(step, current)
            if picture is not None:
                self._bar(step, total, picture)

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
    def _picture(self, step: int, current: Callable[[], Mapping[str, LoraPair]]) -> Image.Image | None:
        if not self._decodes and self._look is None:
            return None
        latents = few_steps(self._base, current(), self._base.encode_prompt(self._prompts), self._size)
        if self._look is not None:
            return self._look(latents)
        picture = self._base.decode_latents(latents)
        if not is_finite(picture):
            # A VAE that overflows in half precision; polishing does without it.
            return None
        if self._judge is not None:
            self._likeness.append((float(step), float(self._judge(picture).mean())))
        return to_pil(picture[0])


def _sheet(name: str, how: str, points: list[tuple[float, float]]) -> Image.Image:
    panels: dict[str, Curves] = {name: {name: points}}
    return draw_curves(panels, "step", how, side=360)
