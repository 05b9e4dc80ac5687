"""Predictors: what answers prepared faces with identities, whichever method is behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ...bundled import bundled_predictor
from ...errors import FileFormatError, quoted
from ...faces.prepared_faces import Faces
from ...formats import predictor_file
from ...formats.container import read_names
from ...identity import Identity
from .hypernetwork_predictor import read_hypernetwork_predictor
from .predict import PredictConfig
from .wants import Wants


class Predictor(Protocol):
    """Pictures of one subject in, adapters of it out, in one pass and without training."""

    @property
    def family(self) -> str:
        """Name of the base family it predicts for."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of the checkpoint it was trained on; empty if unknown. It works on relatives, less well."""
        ...

    @property
    def training(self) -> Mapping[str, Any]:
        """Facts about its training, as JSON values."""
        ...

    @property
    def wants(self) -> Wants: ...

    @property
    def network(self) -> nn.Module:
        """What a host moves to its device."""
        ...

    def predict(
        self, faces: Faces, config: PredictConfig | None = None, seed: int = 0, candidates: int = 1
    ) -> list[Identity]:
        """As many identities as candidates were asked for; equal arguments give equal answers.

        Raises:
            ConfigError: more than one candidate of a predictor that has but one answer.
        """
        ...

    def neutral(self, config: PredictConfig | None = None) -> Identity:
        """What it says of a plain grey picture: of nobody in particular."""
        ...


KINDS: Mapping[str, Callable[[Path, torch.device | str, torch.dtype], Predictor]] = {
    predictor_file.KIND: read_hypernetwork_predictor,
}
"""How each kind of file becomes a predictor; another method adds a row."""


def open_predictor(
    source: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Predictor:
    """Read a predictor, ready to predict.

    Args:
        source: its file, or the name of a family that one is shipped for, such as `miniature`.
        device: where to run it.
        dtype: of its numbers.

    Raises:
        FileFormatError: the file is damaged, foreign, or of a kind this release does not know.
        MissingDependencyError: it needs a package that is not installed.
    """
    path = Path(source)
    if isinstance(source, str) and not path.is_file():
        path = bundled_predictor(source) or path
    kind = read_names(path)[0].get("kind", "")
    if kind not in KINDS:
        holds = f"holds {quoted(kind)}" if kind else "does not say what it holds"
        raise FileFormatError(
            path, f"{holds}, but a predictor ({', '.join(map(repr, KINDS))}) is expected. Choose a predictor's file."
        )
    return KINDS[kind](path, device, dtype)
