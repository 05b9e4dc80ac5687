"""`<lora:name:1>` reads identity files as they are: expanded to an ordinary LoRA when the host loads them.

Automatic1111 asks a list of module types about each layer's keys; Forge and its family read a whole file by one
function. Both are extended once, also when the page is reloaded.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperdream_core.bases import get_base
from hyperdream_core.bases.keys import to_kohya
from hyperdream_core.formats.identity_file import KIND, read_identity
from hyperdream_core.ops.lowrank import LoraPair

_KEYS = {"lidb_down", "lidb_up"}
_MARK = "reads_hyperdream"


def register() -> str:
    """Teach the host's Lora extension; returns how, or an empty text if it is switched off or unknown."""
    networks: Any = sys.modules.get("networks")
    if networks is None:
        return ""
    if hasattr(networks, "module_types"):
        if not any(getattr(kind, _MARK, False) for kind in networks.module_types):
            networks.module_types.append(_module_type(networks.module_types))
        return "module type"
    if hasattr(networks, "load_lora_state_dict"):
        if not getattr(networks.load_lora_state_dict, _MARK, False):
            networks.load_lora_state_dict = _reader(networks.load_lora_state_dict)
        return "state dict"
    return ""


@lru_cache(maxsize=2)
def _expanded(filename: str, changed: int) -> dict[str, dict[str, Tensor]]:
    """Kohya layer name -> its LoRA factors, as our own export has them: both give the same picture to the pixel."""
    identity = read_identity(filename)
    family = get_base(identity.family)
    return {to_kohya(name, family): _factors(pair) for name, pair in identity.expand().items()}


def _factors(pair: LoraPair) -> dict[str, Tensor]:
    rank = torch.tensor(float(pair.rank), dtype=torch.float16)
    return {"lora_down.weight": pair.down.half(), "lora_up.weight": pair.up.half(), "alpha": rank}


def expanded(filename: str) -> dict[str, dict[str, Tensor]]:
    """Layers and factors of the identity in a file.

    Raises:
        ConfigError: the identity acts in noise bands, which no LoRA does.
        FileFormatError, BaseMismatchError: damaged, altered, or drawn with another basis.
    """
    return _expanded(str(filename), Path(filename).stat().st_mtime_ns)


def _module_type(known: list[Any]) -> Any:
    """A module type that hands expanded layers to the host's own for LoRA."""
    lora = next(kind for kind in known if type(kind).__name__ == "ModuleTypeLora")

    class ModuleTypeIdentity(type(lora).__mro__[1]):  # type: ignore[misc]
        def create_module(self, net: Any, weights: Any) -> Any:
            # Those of an identity over noise bands are `band<k>.lidb_down`; expanding it says why it cannot be merged.
            if {key.rpartition(".")[2] for key in weights.w} != _KEYS:
                return None
            layer = weights.network_key.partition(".")[0]
            factors = expanded(net.network_on_disk.filename)[layer]
            return lora.create_module(net, weights._replace(w=dict(factors)))

    setattr(ModuleTypeIdentity, _MARK, True)
    return ModuleTypeIdentity()


def _reader(original: Any) -> Any:
    """The host's reader of LoRA files, which also knows identities."""

    # As many as the host's own keeps; somebody may ask for `cache_clear`.
    @lru_cache(maxsize=5)
    def load_lora_state_dict(filename: str) -> Any:
        if not is_identity(filename):
            return original(filename)
        layers = expanded(filename).items()
        return {f"{layer}.{key}": factor for layer, factors in layers for key, factor in factors.items()}

    setattr(load_lora_state_dict, _MARK, True)
    return load_lora_state_dict


def is_identity(path: str) -> bool:
    """Whether a file says of itself that it is an identity; whatever else it is, it is not."""
    if not str(path).lower().endswith(".safetensors"):
        return False
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("kind") == KIND
    except (SafetensorError, OSError):
        return False
