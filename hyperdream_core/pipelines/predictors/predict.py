"""Pictures of a subject to its identity, in one pass of a hypernetwork and without any training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...config import check_at_most
from ...errors import ConfigError, ReferenceImageError
from ...identity import Identity, averaged, truncated
from ...models.hypernetwork import Hypernetwork
from ...ops.finite import sound
from ...ops.lidb import LidbCoefficients
from ..before_work import check_words


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Settings of one prediction."""

    refine_steps: int = 0
    """Passes of the hypernetwork; 0 takes as many as it was trained for."""
    identifier: str = "sks"
    """The rare word that will stand for the subject; the one the predictor was trained with."""
    class_noun: str = "face"
    """What kind of thing the subject is."""

    def __post_init__(self) -> None:
        if self.refine_steps < 0:
            raise ConfigError(f"refine_steps must be 0 or more, got {self.refine_steps}")
        check_words(self.identifier, self.class_noun)
        check_at_most(self, refine_steps=1000)


@torch.no_grad()
def predict_identity(
    hypernetwork: Hypernetwork,
    references: Tensor,
    config: PredictConfig | None = None,
    weights: Sequence[float] | None = None,
) -> Identity:
    """The identity that the hypernetwork sees in pictures of one subject.

    Of several pictures each is predicted from, and the result has the predictor's rank and is closest to the mean of
    their weight changes.

    Args:
        hypernetwork: its family and target set become the identity's.
        references: (n, 3, h, w) in 0..1; resized to what the image encoder takes.
        config: settings.
        weights: how much each picture counts; all the same by default.

    Raises:
        ReferenceImageError: no picture.
        ConfigError: another number of weights than pictures.
        OutputError: the hypernetwork answers with numbers that are not finite.
    """
    began = time.perf_counter()
    config = config or PredictConfig()
    if references.dim() != 4 or len(references) == 0:
        raise ReferenceImageError(
            f"the references have shape {tuple(references.shape)}, expected (n, 3, h, w) with n of 1 or more; "
            "give at least one picture"
        )
    if weights is not None and len(weights) != len(references):
        raise ConfigError(f"{len(weights)} weights for {len(references)} references; give one for each")
    is_training = hypernetwork.training
    like = next(hypernetwork.parameters())
    try:
        hypernetwork.train(False)
        predicted = hypernetwork(references.to(like), config.refine_steps or None)
    finally:
        hypernetwork.train(is_training)
    each = [_row(hypernetwork, predicted, row, config) for row in range(len(references))]
    identity = truncated(averaged(each, weights), hypernetwork.config.rank)
    passes = config.refine_steps or hypernetwork.config.refine_steps
    facts = {
        "method": "hypernetwork",
        "references": str(len(references)),
        "refine_steps": str(passes),
        "predict_seconds": f"{time.perf_counter() - began:.3f}",
    }
    return replace(identity, made_by=facts)


def neutral_identity(hypernetwork: Hypernetwork, size: int, config: PredictConfig | None = None) -> Identity:
    """What the hypernetwork says of a plain grey picture, `size` px wide: of nobody in particular.

    Source: the neutral reference of asymmetric guidance, docs/methods.md, "Guidance", F.
    """
    return predict_identity(hypernetwork, torch.full((1, 3, size, size), 0.5), config)


def _row(
    hypernetwork: Hypernetwork, predicted: dict[str, LidbCoefficients], row: int, config: PredictConfig
) -> Identity:
    made_for = hypernetwork.config
    return Identity(
        family=made_for.family,
        target_set=made_for.target_set,
        rank=made_for.rank,
        down_dim=made_for.down_dim,
        up_dim=made_for.up_dim,
        coefficients={
            name: LidbCoefficients(_seen(name, c.down[row]), _seen(name, c.up[row])) for name, c in predicted.items()
        },
        identifier=config.identifier,
        class_noun=config.class_noun,
    )


def _seen(layer: str, answer: Tensor) -> Tensor:
    remedy = "use another picture, or get the predictor's file again"
    return sound(answer.float().cpu().clone(), f"what the predictor says of {layer!r}", remedy)
