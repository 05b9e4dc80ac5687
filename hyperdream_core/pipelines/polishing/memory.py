"""Memory that polishing takes beside the base's weights, estimated from the UNet's shape, and a way to work that fits.

Kept for the gradients are, for each place of the latents, about 23 numbers a channel of a transformer block and 13 of a
residual one, fewer by four with each level; counted for the true shapes by `benchmarks/polish_memory.py`. Blocks that
are computed twice keep their inputs only, and one of them its insides. What is at hand for a moment comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...bases import BaseFamily
from ...errors import BaseMismatchError, ConfigError
from ..base import Conditioning

_TRANSFORMER, _RESIDUAL, _INPUTS = 23.0, 13.0, 6.2
"""numbers kept, per channel and place: of either block's insides, and of a residual block that is computed twice"""
_AT_HAND, _AT_HAND_ON_CPU = 2.0, 1.2
"""Largest memory over what is kept: on a CPU as measured on SD 1.5's shape at 256 and 512 px, elsewhere with a margin
that nobody has measured yet."""
_ALWAYS = 0.25e9
"""bytes that go to adapters, optimiser and scratch whatever the pictures' size, in a UNet of 1280 channels"""
_SMALLEST_SHARE = 0.5
"""of the size that was asked for; below that the pictures are not worth training on"""


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a device has, and how a base computes there."""

    free: float
    """bytes beside the weights"""
    number_size: int
    """bytes of a number that the UNet computes with"""
    cast_weights: float = 0.0
    """bytes of the weights that are stored otherwise and cast for computing; their copies are kept for the gradients"""
    device: str = "cuda"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A way to polish."""

    samples_at_once: int
    recomputes: bool
    """insides of blocks are computed twice"""
    size: int
    """px"""
    bytes_needed: float

    def differs_from(self, size: int) -> str:
        """What a user is told where the result is another than was asked for; empty where it is the same."""
        if self.size == size:
            return ""
        return (
            f"there is too little memory for {size} px: polishing at {self.size} px, one sample at once, which shows "
            "less of the face"
        )


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
    at_hand = _AT_HAND_ON_CPU if room.device == "cpu" else _AT_HAND
    always = _ALWAYS * (unet.channels[last] / 1280) ** 2
    return kept * at_hand + always + room.cast_weights * (0.1 if recomputes else 1.0)


def fitting(
    family: BaseFamily,
    size: int,
    samples: int,
    room: Room,
    memory: str = "automatic",
) -> Plan:
    """The way to polish that fits and costs least: fewer samples at once, then computing twice, then a smaller size.

    Samples at once and computing twice leave the result as it is, up to rounding.

    Args:
        family: of the base.
        size: of the pictures, px.
        samples: at once, at most.
        room: on the device.
        memory: `fast` never computes twice, `save memory` always, `automatic` where it must.

    Raises:
        ConfigError: even the smallest does not fit.
    """
    step = max(family.vae_factor * 2 ** (len(family.unet.channels) - 1), 8)
    sizes = [size, *range((size - 1) // step * step, round(size * _SMALLEST_SHARE) - 1, -step)]
    ways = {"fast": (False,), "save memory": (True,)}.get(memory, (False, True))
    needed = 0.0
    for smaller in sizes:
        for recomputes in ways:
            for count in range(samples if smaller == size else 1, 0, -1):
                needed = bytes_needed(family, smaller, count, room, recomputes)
                if needed <= room.free:
                    return Plan(samples_at_once=count, recomputes=recomputes, size=smaller, bytes_needed=needed)
    raise ConfigError(
        f"polishing {family.title} even at {sizes[-1]} px, one sample at once, needs about {needed / 1e9:.1f} GB "
        f"beside the model, but {max(room.free, 0) / 1e9:.1f} GB are free or can be made so; close other programs, or "
        "use a base in 16 bits or a smaller family" + (", or let memory be 'automatic'" if memory == "fast" else "")
    )


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
