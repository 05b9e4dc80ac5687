"""Nodes that make an identity: the miniature, predictors, faces, predicting and polishing."""

from __future__ import annotations
