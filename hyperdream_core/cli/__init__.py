"""The command line: flags made from the configs, one JSON object or plain sentences, exit codes that mean something."""

from __future__ import annotations

from .entry import main

__all__ = ["main"]
