"""Memory that polishing takes beside the base's weights, estimated from the UNet's shape, and a way to work that fits.

Kept for the gradients are, for each place of the latents, about 23 numbers a channel of a transformer block and 13 of a
residual one, fewer by four with each level; counted for the true shapes by `benchmarks/polish_memory.py`. Blocks that
are computed twice keep their inputs only, and one of them its insides. What is at hand for a moment comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...bases import BaseFamily
from ...errors import BaseMismatchError, ConfigError
from ..base import Conditioning

_TRANSFORMER, _RESIDUAL, _INPUTS = 23.0, 13.0, 6.2
"""numbers kept, per channel and place: of either block's insides, and of a residual block that is computed twice"""
_AT_HAND, _AT_HAND_ON_CPU, _AT_HAND_COMPUTED_TWICE = 2.0, 1.2, 1.65
"""Largest memory over what is kept: on a CPU as measured on SD 1.5's and SDXL's shapes at 256 and 512 px, without and
with blocks computed twice; elsewhere an assumption that nobody has measured yet, and `Plan.note` says so."""
Memory = Literal["automatic", "fast", "save memory"]
"""`fast` never computes twice, `save memory` always, `automatic` where it must"""
_WAYS: dict[str, tuple[bool, ...]] = {"automatic": (False, True), "fast": (False,), "save memory": (True,)}
_ALWAYS = 0.22e9
"""bytes that go to adapters, optimiser and scratch whatever the pictures' size, in a UNet of 1280 channels"""
_SMALLEST_SHARE = 0.5
"""of the size that was asked for; below that the pictures are not worth training on"""


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a device has, and how a base computes there."""

    free: float
    """bytes beside the weights; infinite where nobody tells"""
    number_size: int
    """bytes of a number that the UNet computes with"""
    cast_weights: float = 0.0
    """bytes of the weights that are stored otherwise and cast for computing; their copies are kept for the gradients"""
    device: str = "cuda"
    idle: float = 0.0
    """bytes that leave the device once text and pictures are encoded, before the training"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A way to polish."""

    samples_at_once: int
    recomputes: bool
    """insides of blocks are computed twice"""
    size: int
    """px"""
    bytes_needed: float
    note: str = ""
    """what a user is told of what was given way and why; empty where all is as was asked for"""


def bytes_needed(family: BaseFamily, size: int, samples: int, room: Room, recomputes: bool = False) -> float:
    """Memory (bytes) beside the weights, for so many samples at once of pictures of `size` px."""
    unet, last = family.unet, len(family.unet.channels) - 1
    levels = list(zip(unet.channels, unet.transformer_depth, strict=True))
    places = 2 * unet.layers_per_block + 1
    # Channels of all blocks of a kind, by how many places of the finest level one of theirs stands for.
    residual = sum(places * width / 4**level for level, (width, _) in enumerate(levels))
    residual += 2 * unet.channels[last] / 4**last
    transformer = sum(places * depth * width / 4**level for level, (width, depth) in enumerate(levels))
    transformer += unet.middle_depth * unet.channels[last] / 4**last
    if recomputes:
        largest = max(_TRANSFORMER * width / 4**level for level, (width, _) in enumerate(levels))
        numbers = _INPUTS * residual + largest
    else:
        numbers = _TRANSFORMER * transformer + _RESIDUAL * residual
    kept = numbers * (size / family.vae_factor) ** 2 * samples * room.number_size
    on_cpu = _AT_HAND_COMPUTED_TWICE if recomputes else _AT_HAND_ON_CPU
    at_hand = on_cpu if room.device == "cpu" else _AT_HAND
    always = _ALWAYS * (unet.channels[last] / 1280) ** 2
    if recomputes:
        # The largest convolution's weights, arranged anew for its gradient: otherwise that is over by the peak.
        always += 9 * 2 * unet.channels[last] ** 2 * room.number_size
    return kept * at_hand + always + room.cast_weights * (0.1 if recomputes else 1.0)


def fitting(family: BaseFamily, size: int, samples: int, room: Room, memory: Memory = "automatic") -> Plan:
    """The way to polish that fits and costs least.

    Fewer samples at once come first, then computing twice, then a smaller size. What is idle is taken from the device
    in any case and so is no step of its own: that costs two copies of the encoders in a whole run, a fraction of a
    second, where one sample less at once costs time in every step. Samples at once and computing twice leave the
    result as it is, up to rounding.

    Args:
        family: of the base.
        size: of the pictures, px.
        samples: at once, at most.
        room: on the device.
        memory: whether blocks may be computed twice.

    Raises:
        ConfigError: even the smallest does not fit; says what would.
    """
    step = max(family.vae_factor * 2 ** (len(family.unet.channels) - 1), 8)
    sizes = [size, *range((size - 1) // step * step, round(size * _SMALLEST_SHARE) - 1, -step)]
    ways, there = _WAYS[memory], room.free + room.idle
    for smaller in sizes:
        for recomputes in ways:
            for count in range(samples if smaller == size else 1, 0, -1):
                needed = bytes_needed(family, smaller, count, room, recomputes)
                if needed <= there:
                    note = _note((size, samples, ways[0]), (smaller, count, recomputes), family, room)
                    return Plan(
                        samples_at_once=count, recomputes=recomputes, size=smaller, bytes_needed=needed, note=note
                    )
    raise _refusal(family, sizes[-1], room, memory)


Way = tuple[int, int, bool]
"""size in px, samples at once, whether blocks are computed twice"""


def _note(asked: Way, taken: Way, family: BaseFamily, room: Room) -> str:
    """One sentence on what is done otherwise than was asked for, and why."""
    if asked == taken:
        return ""
    ways = []
    if taken[1] < asked[1]:
        ways.append(f"{_samples(taken[1])} at once instead of {asked[1]} (same result)")
    if taken[2] and not asked[2]:
        ways.append("blocks computed twice (a third more time, same result)")
    if taken[0] < asked[0]:
        ways.append(f"pictures of {taken[0]} px instead of {asked[0]} (which shows less of the face)")
    wanted = bytes_needed(family, asked[0], asked[1], room, asked[2])
    return (
        f"polishing as asked needs about {_gb(wanted)} beside the model{_assumed(room)}, but {_gb(_there(room))} are "
        f"free, so it goes on with {', '.join(ways)}"
    )


def _refusal(family: BaseFamily, smallest: int, room: Room, memory: str) -> ConfigError:
    needed = min(bytes_needed(family, smallest, 1, room, way) for way in _WAYS[memory])
    ways = ["close other programs"]
    if memory == "fast":
        ways.append("let memory be 'automatic'")
    if room.number_size > 2:
        half = Room(free=room.free, number_size=2, device=room.device, idle=room.idle / 2)
        fits = bytes_needed(family, smallest, 1, half, True) <= room.free
        ways.append("use the base in 16 bits" + (f", which would fit at {smallest} px" if fits else ""))
    ways.append("use a base of a smaller family")
    return ConfigError(
        f"polishing {family.title} even at {smallest} px, one sample at once, needs about {_gb(needed)} beside the "
        f"model{_assumed(room)}, but {_gb(_there(room))} are free or can be made so; {', or '.join(ways)}"
    )


def _assumed(room: Room) -> str:
    return "" if room.device == "cpu" else " (by an assumption: no graphics card has been measured)"


def _there(room: Room) -> float:
    return max(room.free + room.idle, 0)


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.0f} MB"


def _samples(count: int) -> str:
    return "1 sample" if count == 1 else f"{count} samples"


def check_text(family: BaseFamily, text: Conditioning) -> None:
    """See that prompts are encoded as wide as the UNet reads them.

    Raises:
        BaseMismatchError: they are of another family's text encoders.
    """
    found, wanted = text.tokens.shape[-1], family.unet.context_dim
    if found != wanted:
        raise BaseMismatchError(
            f"the text encoder writes {found} numbers a token, but the UNet of {family.title} reads {wanted}; use the "
            "CLIP of the same checkpoint"
        )
    if len(family.text_encoders) > 1:
        width = family.text_encoders[-1].width
        if text.pooled is None or text.pooled.shape[-1] != width:
            seen = "none" if text.pooled is None else str(text.pooled.shape[-1])
            raise BaseMismatchError(
                f"the UNet of {family.title} also reads the whole prompt as {width} numbers, but the text encoder "
                f"writes {seen}; use the CLIP of the same checkpoint"
            )
