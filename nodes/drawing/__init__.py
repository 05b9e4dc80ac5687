"""Nodes that draw with identities: applying them, prompts, hybrid guidance and regions."""

from __future__ import annotations
