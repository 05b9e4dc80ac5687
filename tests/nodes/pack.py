"""Modules of `nodes/` imported as a host sees them, inside one package with the core, but without the host."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
PACK = "hyperdream_pack_without_host"


def load_pack_module(name: str) -> ModuleType:
    """The module `name` of the pack, such as 'nodes.library'; its package's __init__ needs a host and is left out."""
    for package, folder in ((PACK, ROOT), (f"{PACK}.nodes", ROOT / "nodes")):
        if package not in sys.modules:
            module = ModuleType(package)
            module.__path__ = [str(folder)]
            sys.modules[package] = module
    return import_module(f"{PACK}.{name}")
