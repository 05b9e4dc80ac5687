"""Nodes that keep identities: saving, loading, exporting, blending, measuring, and what the sidebar asks."""

from __future__ import annotations
