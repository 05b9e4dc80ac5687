"""The two judges of the miniature: who is in a picture, and what the picture shows.

Neither is ever trained with, distilled into, or shown to a predictor: they are taught on people of their own
(`people.SEEDS["judges"]`), so their word on a personalised picture is independent.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...bases.miniature import MINIATURE
from ...bundled import bundled_weights
from ...errors import FileFormatError
from ...faces.face import Face
from ...formats.container import read_tensors
from ...pictures.files import square_crop
from ..world.captions import ATTRIBUTES, Context


class Trunk(nn.Module):
    """A small residual network from pictures (b, 3, h, w) in 0..1 to features (b, width)."""

    def __init__(self, widths: tuple[int, ...] = (24, 48, 96, 160)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 5, stride=2, padding=2)
        stages: list[nn.Module] = []
        for before, after, stride in zip(widths, (*widths[1:], widths[-1]), (2, 2, 2, 1), strict=True):
            stages.append(_Block(before))
            stages.append(nn.Conv2d(before, after, 3, stride=stride, padding=1))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.GroupNorm(8, widths[-1])
        self.width = widths[-1] * 16

    def forward(self, pictures: Tensor) -> Tensor:
        maps = self.norm(self.stages(self.stem(pictures * 2.0 - 1.0)))
        return F.adaptive_avg_pool2d(F.silu(maps), 4).flatten(1)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.second(F.silu(self.first(F.silu(self.norm(maps)))))


class IdentityJudge(nn.Module):
    """Embeds a face so that pictures of one person agree: `identity_embedding` (b, 128), unit length."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.head = nn.Linear(self.trunk.width, width)

    def forward(self, pictures: Tensor) -> Tensor:
        """Identity embeddings (b, 128) of pictures (b, 3, h, w) in 0..1."""
        return F.normalize(self.head(self.trunk(pictures)), dim=-1)


class IdentityObjective(nn.Module):
    """Tell people apart: of all pictures in the batch, which shows the same person in another context?

    The scale of the scores stays moderate: a trained one grows until people are merely told apart, and a low likeness
    of two pictures of one person would be no loss.
    """

    SCALE = 12.0

    def __init__(self, judge: IdentityJudge) -> None:
        super().__init__()
        self.judge = judge

    def forward(self, pairs: Tensor, generator: torch.Generator) -> Tensor:
        """Loss of pairs (b, 2, 3, h, w) of pictures, row by row of one person."""
        first, second = self.judge(pairs.flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)
        scores = first @ second.T * self.SCALE
        same = torch.arange(len(scores))
        return (F.cross_entropy(scores, same) + F.cross_entropy(scores.T, same)) / 2.0


class AttributeJudge(nn.Module):
    """Reads expression, accessory, background and style off a picture, as scores per attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk((16, 32, 64, 96))
        self.heads = nn.ModuleDict({name: nn.Linear(self.trunk.width, len(v)) for name, v in ATTRIBUTES.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Scores (b, values) per attribute of pictures (b, 3, h, w) in 0..1."""
        features = self.trunk(pictures)
        return {name: head(features) for name, head in self.heads.items()}

    def read(self, pictures: Tensor) -> Context:
        """The likeliest context of each picture."""
        return Context(**{name: scores.argmax(-1) for name, scores in self(pictures).items()})


class AttributeObjective(nn.Module):
    """Cross entropy over the four attributes."""

    def __init__(self, judge: AttributeJudge) -> None:
        super().__init__()
        self.judge = judge

    def forward(self, batch: tuple[Tensor, Context], generator: torch.Generator) -> Tensor:
        """Loss of pictures (b, 3, h, w) and their contexts (b,)."""
        pictures, context = batch
        losses = [F.cross_entropy(scores, getattr(context, name)) for name, scores in self.judge(pictures).items()]
        return torch.stack(losses).sum()


def attribute_accuracy(judge: AttributeJudge, pictures: Tensor, context: Context) -> dict[str, Tensor]:
    """Per attribute, which pictures show what was asked: booleans (b,)."""
    read = judge.read(pictures)
    return {name: getattr(read, name) == getattr(context, name) for name in ATTRIBUTES}


def load_judges(folder: Path) -> tuple[IdentityJudge, AttributeJudge]:
    """Both judges from a folder that `recipe.judges` wrote, ready to judge.

    Raises:
        FileFormatError: a file is missing, damaged or of another network.
    """
    judges = IdentityJudge(), AttributeJudge()
    for judge, name in zip(judges, ("identity", "attributes"), strict=True):
        path = folder / f"{name}.safetensors"
        tensors = read_tensors(path)[1]
        try:
            judge.load_state_dict({key: tensor.float() for key, tensor in tensors.items()})
        except RuntimeError as error:
            raise FileFormatError(
                path, f"does not hold the weights of this judge ({str(error)[:200]}). Get the miniature again."
            ) from error
        judge.train(False).requires_grad_(False)
    return judges


class JudgeRecognizer:
    """The identity judge where the pipelines expect a recogniser; it looks at whole pictures, as it was taught to."""

    about = "the miniature's identity judge"
    needs_landmarks = False
    side = MINIATURE.picture_size
    # Between other people's 0.01 and the 0.89 of one person in other contexts, on 32 unseen people (model card).
    same_person = 0.4

    def __init__(self, judge: IdentityJudge) -> None:
        self.judge = judge

    def embed(self, picture: Tensor, face: Face) -> Tensor:
        """The identity embedding (128,), unit length, of the largest centred square of a picture (3, h, w)."""
        embedding: Tensor = self.judge(square_crop(picture, self.side)[None].float().cpu())[0]
        return embedding


def bundled_recognizer() -> JudgeRecognizer | None:
    """The identity judge that comes with the miniature; None if this copy came without."""
    folder = bundled_weights() / MINIATURE.name / "judges"
    return JudgeRecognizer(load_judges(folder)[0]) if folder.is_dir() else None
