"""Scores of personalised pictures, with intervals over people, and the table that compares methods.

A method is judged by how much its pictures look like the person (cosine to the reference in a recogniser's space),
how well they show what the prompt asked for, and how far they merely copy the reference. Who judges is
the caller's choice; docs/methods.md, "Judging", says which networks the field uses, and why none may have been
trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % bootstrap interval over people."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class MethodScores:
    """What one method reached, over people x prompts."""

    name: str
    similarity: Interval
    attributes: Interval
    per_attribute: Mapping[str, float]
    copy: Interval
    top1: float
    seconds: float
    similarity_by_person: Tensor  # (people,)
    attributes_by_person: Tensor  # (people,)

    def gap_closed(self, base: MethodScores, ceiling: MethodScores) -> Interval:
        """(similarity - base alone) / (ceiling - base alone), resampled over people together."""
        own, low, high = (s.similarity_by_person for s in (self, base, ceiling))
        return bootstrap(torch.stack([own - low, high - low], -1), lambda m: m[..., 0] / m[..., 1])


def bootstrap(
    values: Tensor, statistic: Callable[[Tensor], Tensor] | None = None, draws: int = 2000, seed: int = 0
) -> Interval:
    """95 % percentile interval of a statistic of the mean over the leading axis.

    Args:
        values: (people,) or (people, columns).
        statistic: function of resampled means (..., columns); the mean itself if None.
        draws: resamples.
        seed: of the resampling.
    """
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(values), (draws, len(values)), generator=generator)
    function = statistic or (lambda mean: mean)
    means = function(values[index].mean(1))
    low, high = torch.quantile(means.float(), torch.tensor([0.025, 0.975])).tolist()
    return Interval(float(function(values.mean(0))), low, high)


def score_method(
    name: str,
    embeddings: Tensor,
    reference_embeddings: Tensor,
    hits: Mapping[str, Tensor],
    copy_scores: Tensor,
    seconds: float = 0.0,
) -> MethodScores:
    """Scores of one method.

    Args:
        name: of the method, as the table shows it.
        embeddings: (people, prompts, d), unit length, of the pictures.
        reference_embeddings: (people, d), unit length.
        hits: attribute -> (people, prompts) booleans, shown as asked.
        copy_scores: (people, prompts), similarity of whole pictures to the reference picture.
        seconds: spent on making the adapters.
    """
    similarity = torch.einsum("ijd,id->ij", embeddings, reference_embeddings)
    by_person = similarity.mean(1)
    correct = torch.stack([value.float() for value in hits.values()]).mean(0).mean(1)
    nearest = torch.einsum("ijd,kd->ijk", embeddings, reference_embeddings).argmax(-1)
    top1 = (nearest == torch.arange(len(nearest)).unsqueeze(1)).float().mean()
    return MethodScores(
        name=name,
        similarity=bootstrap(by_person),
        attributes=bootstrap(correct),
        per_attribute={key: float(value.float().mean()) for key, value in hits.items()},
        copy=bootstrap(copy_scores.mean(1)),
        top1=float(top1),
        seconds=seconds,
        similarity_by_person=by_person,
        attributes_by_person=correct,
    )


def picture_similarity(pictures: Tensor, references: Tensor, size: int = 16) -> Tensor:
    """Copy score (people, prompts): correlation of shrunk pictures (people, prompts, 3, h, w) with their reference's.

    1 is a copy; two portraits of one composition but different people lie around 0.5.
    """
    people, prompts = pictures.shape[:2]
    small = F.adaptive_avg_pool2d(pictures.flatten(0, 1), size).reshape(people, prompts, -1)
    wanted = F.adaptive_avg_pool2d(references, size).reshape(people, 1, -1)
    small, wanted = (F.normalize(x - x.mean(-1, keepdim=True), dim=-1) for x in (small, wanted))
    return (small * wanted).sum(-1)


def format_table(rows: Sequence[MethodScores], base: str, ceiling: str) -> str:
    """The rows as a Markdown table, gap closed between the rows named `base` and `ceiling`."""
    by_name = {row.name: row for row in rows}
    lines = [
        "| method | similarity [95 %] | gap closed [95 %] | attributes [95 %] | copy | top-1 |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        gap = row.gap_closed(by_name[base], by_name[ceiling])
        lines.append(
            f"| {row.name} | {row.similarity} | {gap} | {row.attributes} | {row.copy.mean:.2f} | {row.top1:.2f} |"
        )
    return "\n".join(lines)
