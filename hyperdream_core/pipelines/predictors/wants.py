"""What a predictor looks at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Wants:
    """What a predictor looks at."""

    size: int
    """side of the faces' crops, px"""
    margin: float | None = None
    """side of a crop as a multiple of ArcFace's tight square; None takes them as they were prepared"""
    embedding: bool = False
    """whether each face needs a recogniser's embedding"""
    candidates: bool = False
    """whether several different answers can be asked for"""
