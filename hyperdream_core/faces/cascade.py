"""Faces by the frontal cascade that scikit-image brings along: no download, no model file, any ordinary photograph.

The cascade proposes on a reduced picture, tilted in steps, and each proposal is looked at again from close up: tilted a
little and mirrored. A face answers in all of these views and a pattern that happens to look like one does not. Where
the upright picture has no face, the padded copy (close-ups), the quarter turns and a larger copy are searched too; so
faces narrower than 6 % of the picture's longer side count only where there is no wider one. Where it has only faces
that are not certain, the quarter turns are searched as well, and the turn with the most hits in all is taken: of a
group that stands on its head, one face may well answer weakly in the upright picture.

The cascade itself is OpenCV's `lbpcascade_frontalface` (BSD), found and run by scikit-image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import MissingDependencyError
from .face import Face, Search

# The cascade's own window, px; smaller faces than this are not looked for in any copy of the picture.
_WINDOW = 24
_THREADS = 4
_TILTS = (-30, -15, 0, 15, 30)
# A proposal is judged in a crop of this side in which its box has 48 px; three tilts, each with its mirror image.
_CLOSE_UP, _BOX_IN_CLOSE_UP = 88, 48
_CLOSE_TILTS = (-20, -10, 0, 10, 20)
# Windows that answer to a face, in the weaker of the best tilt's view and its mirror image. Of 16 pictures that come
# with scikit-image and insightface, the faces reach 19 to 43 and everything else stays at or below 8.
_CERTAIN_HITS = 20.0
_CERTAIN = 0.8
"""Score from which a face settles how the picture is turned."""
# Where eyes, nose and mouth lie in the cascade's square, as shares of its side; measured on the same faces.
_IN_WINDOW = ((0.31, 0.36), (0.69, 0.36), (0.50, 0.58), (0.345, 0.80), (0.655, 0.80))

_Hits = np.ndarray
"""(n, 3): centre x, centre y, side"""


@dataclass(frozen=True)
class _Pass:
    """One copy of the picture to search."""

    label: str
    longest: int
    """px the picture's longer side is reduced to"""
    turns: tuple[int, ...] = (0,)
    """degrees, quarter turns"""
    tilts: tuple[int, ...] = _TILTS
    pad: float = 0.0
    """share of the picture's sides that is added around it"""
    stride: float = 1.0


@dataclass(frozen=True, eq=False)
class _Seen:
    """A face as one pass saw it."""

    face: Face
    hits: int
    """windows that answer; its score says no more beyond `_CERTAIN_HITS`"""
    turn: int
    """degrees, of the pass"""


_PASSES = (
    _Pass("at 400 px in 5 tilts", 400, stride=1.3),
    _Pass("on a padded copy", 160, tilts=(-15, 0, 15), pad=0.5),
    _Pass("on the quarter turns", 320, turns=(90, 270, 180), tilts=(-15, 0, 15), stride=1.3),
    _Pass("on the padded copy's quarter turns", 160, turns=(90, 270, 180), tilts=(0,), pad=0.5),
    _Pass("at 800 px", 800, tilts=(0,), stride=1.5),
)


class CascadeDetector:
    """scikit-image's frontal cascade behind the detectors' interface."""

    name = "cascade"
    about = "scikit-image's frontal cascade"

    def __init__(self) -> None:
        """Raises MissingDependencyError if scikit-image is not installed."""
        if find_spec("skimage") is None:
            raise MissingDependencyError("skimage", "pip install scikit-image")
        import skimage
        from skimage.feature import Cascade

        # Not through skimage.data, which wants pooch for some of its files and may download.
        file = Path(skimage.__file__).parent / "data" / "lbpcascade_frontalface_opencv.xml"
        self._cascade = Cascade(str(file))

    def find(self, picture: Tensor, min_score: float) -> Search:
        """Faces in a picture (3, h, w) in 0..1, upright ones first; other positions where none is certain."""
        levels = _Levels(picture)
        found: list[_Seen] = []
        looked: list[str] = []
        turned = False
        for way in _PASSES:
            best = max((one.face.score for one in found), default=0.0)
            if best >= max(min_score, 0.0 if turned else _CERTAIN):
                break
            if best >= min_score and len(way.turns) == 1:
                continue  # Something is there already; in question is only how it stands.
            looked.append(way.label)
            for turn in way.turns:
                found += self._search(levels, way, turn)
            turned = turned or len(way.turns) > 1
        return Search(tuple(_without_overlaps(_of_one_turn(found, min_score))), ", ".join(looked))

    def _search(self, levels: _Levels, way: _Pass, turn: int) -> list[_Seen]:
        small = levels.reduced(way.longest)
        scale = levels.width / small.width
        pad = round(way.pad * max(small.size))
        if pad:
            small = Image.fromarray(np.pad(np.asarray(small), pad, mode="edge"))
        views = [_Turned(small, turn + tilt) for tilt in way.tilts]
        # scikit-image lets go of Python's lock, so that two cores take half the time.
        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(lambda view: self._hits(view.image, _WINDOW, 1.2, way.stride), views))
            proposals = [
                (*view.back(x, y), side, view.degrees)
                for view, hits in zip(views, found, strict=True)
                for x, y, side in hits.tolist()
            ]
            # One window alone is chance: a face answers at neighbouring places, sizes and tilts.
            means = [np.mean(group, axis=0) for group in _grouped(proposals) if len(group) >= 3]
            judged = pool.map(
                lambda at: self._judged(
                    levels, (at[0] - pad) * scale, (at[1] - pad) * scale, at[2] * scale, float(at[3]), turn
                ),
                means,
            )
            return list(judged)

    def _judged(self, levels: _Levels, x: float, y: float, side: float, tilt: float, turn: int) -> _Seen:
        """Look at one proposal from close up."""
        hits: dict[float, tuple[_Hits, _Hits]] = {}
        for more in _CLOSE_TILTS:
            view = levels.close_up(x, y, side * _CLOSE_UP / _BOX_IN_CLOSE_UP, tilt + more)
            mirrored = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            hits[tilt + more] = (self._central(view), self._central(mirrored))
        weaker = {at: min(len(straight), len(mirror)) for at, (straight, mirror) in hits.items()}
        best = max(weaker, key=lambda at: (weaker[at], sum(map(len, hits[at])), -abs(at - tilt)))
        count = weaker[best]
        # The tilts around the best one say where between them the face stands upright.
        total = sum(count**2 for count in weaker.values())
        if total:
            best = sum(at * count**2 for at, count in weaker.items()) / total
        straight, mirror = (np.concatenate([pair[half] for pair in hits.values()]) for half in (0, 1))
        if len(straight) and len(mirror):
            zoom = side / _BOX_IN_CLOSE_UP
            size = (np.median(straight[:, 2]) + np.median(mirror[:, 2])) / 2 * zoom
        else:
            size = side
        face = _face(float(x), float(y), float(size), float(best), min(1.0, count / _CERTAIN_HITS))
        return _Seen(face, count, turn)

    def _central(self, view: Image.Image) -> _Hits:
        hits = self._hits(view, 34, 1.1, 1.0, 72)
        near = np.abs(hits[:, :2] - _CLOSE_UP / 2).max(1, initial=0) < 14
        return hits[near]

    def _hits(self, image: Image.Image, smallest: int, growth: float, stride: float, largest: int = 0) -> _Hits:
        """Every window that the cascade accepts, unmerged: their number is all it tells about how sure it is."""
        pixels = np.asarray(image)
        largest = largest or min(pixels.shape)
        if min(pixels.shape) < smallest:
            return np.zeros((0, 3))
        windows: list[dict[str, Any]] = self._cascade.detect_multi_scale(
            img=pixels,
            scale_factor=growth,
            step_ratio=stride,
            min_size=(smallest, smallest),
            max_size=(largest, largest),
            min_neighbor_number=0,
            # Windows overlap by at most 1, so none are merged.
            intersection_score_threshold=2.0,
        )
        boxes = [(w["c"] + w["width"] / 2, w["r"] + w["height"] / 2, w["width"]) for w in windows]
        return np.asarray(boxes, dtype=np.float64).reshape(-1, 3)


class _Levels:
    """A picture in grey, at the sizes that are asked for."""

    def __init__(self, picture: Tensor) -> None:
        self.height, self.width = picture.shape[-2:]
        weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float32, device=picture.device)
        # Twice the largest pass is enough for close-ups of whatever is found in it.
        pool = max(1, max(self.height, self.width) // 2000)
        pooled = F.avg_pool2d(picture[None].float(), pool, ceil_mode=True)[0] if pool > 1 else picture.float()
        grey = torch.einsum("c,chw->hw", weights, pooled).clamp(0, 1).mul(255).round().to(torch.uint8)
        self.image = Image.fromarray(grey.cpu().numpy())
        # The last cell of a pooled picture may reach beyond its edge.
        self.pool = pool

    def reduced(self, longest: int) -> Image.Image:
        """At that longest side; small pictures are enlarged up to twice, since windows cannot shrink."""
        factor = min(2.0, longest / max(self.image.size))
        width, height = (max(1, round(side * factor)) for side in self.image.size)
        return self.image.resize((width, height), Image.Resampling.BILINEAR if factor > 1 else Image.Resampling.BOX)

    def close_up(self, x: float, y: float, side: float, tilt: float) -> Image.Image:
        """The square of that side around a point of the picture, turned upright by `tilt` degrees."""
        x, y, side = x / self.pool, y / self.pool, side / self.pool
        # Cut with room for the turn and reduced before it: turning full-size pictures is slow. Beyond the picture its
        # edge goes on, because a black border looks like a feature.
        room = max(4, round(side * 1.5))
        pixels = np.asarray(self.image)
        rows, columns = (np.arange(room) + round(middle - room / 2) for middle in (y, x))
        cut = pixels[np.ix_(rows.clip(0, pixels.shape[0] - 1), columns.clip(0, pixels.shape[1] - 1))]
        part = Image.fromarray(cut).resize((round(_CLOSE_UP * 1.5),) * 2, Image.Resampling.LANCZOS)
        edge = (part.width - _CLOSE_UP) // 2
        turned = part.rotate(tilt, Image.Resampling.BICUBIC)
        return turned.crop((edge, edge, edge + _CLOSE_UP, edge + _CLOSE_UP))


class _Turned:
    """An image turned counter-clockwise about its centre, which knows where its points came from."""

    def __init__(self, image: Image.Image, degrees: float) -> None:
        self.image = image.rotate(degrees, Image.Resampling.BICUBIC, expand=degrees % 180 != 0) if degrees else image
        self.degrees = float(degrees)
        self.angle, self.before, self.after = math.radians(degrees), image.size, self.image.size

    def back(self, x: float, y: float) -> tuple[float, float]:
        """The point of the image before it was turned."""
        x, y = x - self.after[0] / 2, y - self.after[1] / 2
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return self.before[0] / 2 + x * cos - y * sin, self.before[1] / 2 + x * sin + y * cos


def _grouped(proposals: Sequence[tuple[float, float, float, float]]) -> list[list[tuple[float, float, float, float]]]:
    """Proposals (x, y, side, tilt) of about the same place and size together."""
    groups: list[list[tuple[float, float, float, float]]] = []
    for one in proposals:
        for group in groups:
            x, y, side, _ = np.mean(group, axis=0)
            if math.hypot(x - one[0], y - one[1]) < 0.3 * side and 1 / 1.7 < one[2] / side < 1.7:
                group.append(one)
                break
        else:
            groups.append([one])
    return groups


def _of_one_turn(found: Sequence[_Seen], min_score: float) -> list[_Seen]:
    """What was seen in the turn with the most hits of sure faces, and what is certain in another one; surest first."""
    hits: dict[int, int] = {}
    for one in found:
        if one.face.score >= min_score:
            hits[one.turn] = hits.get(one.turn, 0) + one.hits
    if hits:
        # Of two turns alike the one that was searched first.
        taken = max(hits, key=lambda turn: hits[turn])
        found = [one for one in found if one.turn == taken or one.face.score >= _CERTAIN]
    return sorted(found, key=lambda one: -one.hits)


def _without_overlaps(found: Sequence[_Seen]) -> list[Face]:
    """The faces, surest first, without those whose centre lies in a surer one's box or the other way round."""
    kept: list[Face] = []
    for face in (one.face for one in found):
        if not any(_holds(other, face) or _holds(face, other) for other in kept):
            kept.append(face)
    return kept


def _holds(outer: Face, inner: Face) -> bool:
    left, top, right, bottom = outer.box
    return left < inner.center[0] < right and top < inner.center[1] < bottom


def _face(x: float, y: float, side: float, tilt: float, score: float) -> Face:
    """The face in the cascade's square around a point, turned clockwise in the picture by `tilt` degrees."""
    cos, sin = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    turn = torch.tensor([[cos, -sin], [sin, cos]])
    landmarks = torch.tensor([x, y]) + (torch.tensor(_IN_WINDOW) - 0.5) * side @ turn.T
    half = side / 2
    return Face((x - half, y - half, x + half, y + half), score, landmarks)
