"""Networks of a base from configurations and weight files: seen to fit from headers alone, then filled.

Nothing is changed for other threads meanwhile: torch's device context counts for the thread that opened it, whereas
accelerate's empty weights and diffusers' `from_pretrained` change `nn.Module` and torch's default dtype for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import FileFormatError, MissingDependencyError, quoted
from ...json_text import read_json
from ...models.image_encoder import building_errors
from ...models.small_autoencoder import LikeDiffusers, SmallAutoencoder
from .ldm_tensors import Source, Sources
from .weights import WeightFiles

_MOST_LAYERS, _MOST_ENTRIES, _MOST = 64, 1000, 10_000_000
_MOST_LEVELS = 16
_TOLD = 3
"""tensors that do not fit, in a message"""


def require_diffusers() -> None:
    """Raise MissingDependencyError unless diffusers and transformers are there; hosts come without the first."""
    for package in ("diffusers", "transformers"):
        if find_spec(package) is None:
            raise MissingDependencyError(package, f"pip install {package}")


def bounded_config(path: Path) -> dict[str, Any]:
    """A network's configuration in a folder, with no number so large that building it would not end.

    Raises:
        FileFormatError: not there, no JSON, or out of bounds.
    """
    config: dict[str, Any] = read_json(path, finite=False)
    for key, value in config.items():
        is_depth = "layers" in key or "blocks" in key
        most, length = (_MOST_LAYERS, _MOST_LEVELS) if is_depth else (_MOST, _MOST_ENTRIES)
        if "channels" in key or "multiscales" in key:
            length = _MOST_LEVELS
        if not _within(value, most, length):
            raise FileFormatError(
                path,
                f"has {quoted(key)} beyond all bases (numbers of at most {most:,} and lists of at most {length:,} are "
                "expected); get the folder again",
            )
    return config


def _within(value: Any, most: int, length: int) -> bool:
    if isinstance(value, dict):
        return len(value) <= _MOST_ENTRIES and all(_within(one, most, length) for one in value.values())
    if isinstance(value, list):
        return len(value) <= length and all(_within(one, most, length) for one in value)
    return not isinstance(value, (int, float)) or -most <= value <= most


def check_settings(path: Path, config: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
    """See that a configuration says what the weights beside it are known to be.

    Args:
        path: of the configuration.
        config: entries that are missing or null count as right.
        expected: one value, or one for each level, for which one stands that is the same at every level.
        what: whose they are.

    Raises:
        FileFormatError: names the entry.
    """
    for key, right in expected.items():
        found = config.get(key)
        levels = list(right) if isinstance(right, tuple) else [right] * (len(found) if isinstance(found, list) else 1)
        alike = found if isinstance(found, list) else [found] * len(levels)
        if found is not None and not _are_equal(alike, levels):
            raise FileFormatError(
                path,
                f"says {key} {quoted(found)}, but the weights beside it are {what}, which has {right}; the two are not "
                "of one model, so get the folder again",
            )


def _are_equal(found: Sequence[Any], right: Sequence[Any]) -> bool:
    """Whether values are the same, where true is not 1."""
    return list(found) == list(right) and [type(one) is bool for one in found] == [type(one) is bool for one in right]


@dataclass(frozen=True, eq=False)
class Plan:
    """A network without weights, and where each of them lies."""

    model: nn.Module
    weights: WeightFiles
    sources: Mapping[str, Source]

    def filled(self, dtype: torch.dtype) -> nn.Module:
        """The network with its weights, on the CPU."""
        with self.weights.opened() as read:
            # Converted one by one, so that only one is there twice.
            tensors = {name: source.taken(read(source.name)).to(dtype) for name, source in self.sources.items()}
        self.model.load_state_dict(tensors, strict=False, assign=True)
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_meta:
                    assert name == "position_ids", name
                    setattr(module, name, torch.arange(buffer.shape[-1]).expand(buffer.shape))
        return self.model


def planned(
    build: Callable[[], Any], weights: WeightFiles, sources: Sources, whole: tuple[str, ...], advice: str
) -> Plan:
    """A network, if the weights are of its configuration; from their headers alone.

    Args:
        build: makes the network; what it makes has no weights.
        weights: may hold more than it needs.
        sources: where each tensor lies.
        whole: how names begin of which none may be left over.
        advice: the remedy.

    Raises:
        FileFormatError: the configuration describes nothing that can be built, or a tensor is missing, of another
            shape, quantised or one too many; names the first of them.
    """
    try:
        with torch.device("meta"):
            model: nn.Module = build()
        # transformers before 4.31 counts the numbers of the positions among the weights.
        needed = {name: tuple(t.shape) for name, t in model.state_dict().items() if not name.endswith("position_ids")}
    except building_errors() as error:
        raise FileFormatError(
            weights.path, f"is of a configuration that makes no network ({quoted(error, 300)}); {advice}"
        ) from error
    found = {name: sources(name) for name in needed}
    kind = type(model).__name__
    _check_fit(kind, weights, needed, found, advice)
    used = {source.name for source in found.values()}
    for left in weights.table:
        if left not in used and left.startswith(whole):
            raise FileFormatError(
                weights.places[left], f"holds {quoted(left, 120)}, which its {kind} has not; {advice}"
            )
    return Plan(model, weights, found)


def _check_fit(
    kind: str,
    weights: WeightFiles,
    needed: Mapping[str, tuple[int, ...]],
    sources: Mapping[str, Source],
    advice: str,
) -> None:
    wrong = []
    for name, shape in needed.items():
        source, right = sources[name].name, sources[name].shapes(shape)
        entry = weights.table.get(source)
        if entry is None or entry.shape not in right:
            found = "is missing" if entry is None else f"has {quoted(entry.shape)}"
            wrong.append(f"needs {source!r} of shape {right[0]}, but it {found}")
        else:
            weights.check_numbers(source)
    if wrong:
        more = f"; and {len(wrong) - _TOLD:,} more" if len(wrong) > _TOLD else ""
        raise FileFormatError(
            weights.path, f"is not of its configuration: {kind} {'; '.join(wrong[:_TOLD])}{more}. {advice.capitalize()}"
        )


def deep_autoencoder(config: Mapping[str, Any]) -> Callable[[], nn.Module]:
    """Makes the miniature's VAE: diffusers' class, or our own before diffusers knew an encoder without a shortcut.

    The class came with 0.32, which adds the shortcut whatever the configuration says; Forge brings 0.31.
    """
    import diffusers

    kind = getattr(diffusers, "AutoencoderDC", None)
    if kind is None or "encoder_out_shortcut" not in signature(kind).parameters:
        return lambda: SmallAutoencoder.from_settings(config)

    def build() -> Any:
        model = kind(**{key: config[key] for key in signature(kind).parameters if key in config})
        if "block_out_channels" in config:
            # An entry that is there for pipelines.
            model.register_to_config(block_out_channels=config["block_out_channels"])
        return model

    return build


def as_vae(network: nn.Module, scaling_factor: float) -> nn.Module:
    """A filled VAE in diffusers' words."""
    return LikeDiffusers(network, scaling_factor) if isinstance(network, SmallAutoencoder) else network
