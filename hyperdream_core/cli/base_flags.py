"""The flags of every command that works on a base: which one, where it runs, and what the pictures show besides."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..bundled import SHIPPED
from .flags import place
from .threads import use_threads_for

if TYPE_CHECKING:
    import torch

    from ..bases import BaseFamily
    from ..faces.prepared_faces import Faces
    from ..pipelines.diffusers.diffusers_base import DiffusersBase
    from ..pipelines.polishing.memory import Memory
    from ..pipelines.polishing.polish_config import PolishConfig
    from .console import Console


def add_device_flag(parser: argparse.ArgumentParser) -> None:
    """Where to compute."""
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="cpu, cuda, mps ... (default: auto, cuda where there is one)"
    )


def add_base_flags(parser: argparse.ArgumentParser, may_be_quantized: bool = True) -> None:
    """Which base, and where it runs."""
    parser.add_argument(
        "--base",
        default=SHIPPED,
        metavar="BASE",
        help=f"{SHIPPED!r}, a diffusers folder or a .safetensors checkpoint (default: {SHIPPED})",
    )
    add_device_flag(parser)
    parser.add_argument(
        "--dtype", default="fp32", choices=("fp32", "fp16", "bf16"), help="numbers of the base (default: fp32)"
    )
    parser.add_argument(
        "--prediction-type",
        choices=("epsilon", "v_prediction"),
        help="what the base predicts, against whatever its files say (default: as they say; where they say nothing, "
        "what is usual in its family, and a note says so)",
    )
    if not may_be_quantized:
        return
    parser.add_argument(
        "--quantize",
        choices=("int8", "int4", "nf4"),
        help="keep the UNet's weights in 8 or 4 bits, which saves memory, costs time at every step, "
        "and in 4 bits some of what prompts say (default: as --dtype says)",
    )


def add_memory_flag(parser: argparse.ArgumentParser) -> None:
    """Whether polishing may take longer in less memory."""
    parser.add_argument(
        "--memory",
        default="automatic",
        choices=("automatic", "fast", "save-memory"),
        help="save-memory computes the UNet's blocks twice: a quarter of the memory, a third more time, same result; "
        "automatic does so where there is no room otherwise, fast never (default: automatic)",
    )


def memory_of(arguments: argparse.Namespace) -> Memory:
    """What `add_memory_flag` asks for, in the core's words."""
    memory: Memory = arguments.memory.replace("-", " ")
    return memory


@dataclass(frozen=True, kw_only=True)
class BaseChoice:
    """What `add_base_flags` asks for."""

    source: str
    device: str
    dtype: str
    prediction_type: str | None = None
    quantize: str | None = None

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> BaseChoice:
        """Of a command line."""
        return cls(
            source=arguments.base,
            device=arguments.device,
            dtype=arguments.dtype,
            prediction_type=arguments.prediction_type,
            quantize=getattr(arguments, "quantize", None),
        )

    @property
    def family(self) -> BaseFamily:
        """Its family, without loading it."""
        from ..pipelines.diffusers.loading import base_family

        return base_family(self.source)

    def check_memory(self, config: PolishConfig, size: int, memory: Memory) -> None:
        """Refuse polishing for which there will be no room beside the weights, before anything is loaded.

        Args:
            size: of the pictures, px; 0 takes the base's own.

        Raises:
            ConfigError: names what would fit.
        """
        from ..pipelines.diffusers.loading import base_numbers
        from ..pipelines.polishing.memory import Room
        from ..pipelines.polishing.room import free_memory, planned

        family, device = self.family, device_named(self.device)
        number_size = 4 if self.dtype == "fp32" else 2
        stored = {None: number_size, "int8": 1.0}.get(self.quantize, 0.5)
        free = free_memory(device) - stored * base_numbers(self.source)
        room = Room(free=free, number_size=number_size, device=device.type)
        planned(family, config, size or family.picture_size, False, room, memory)

    def load(self, console: Console) -> DiffusersBase:
        """The base; what had to be assumed of it is said."""
        import torch

        from ..pipelines.diffusers.loading import load_base

        device = device_named(self.device)
        use_threads_for(self.family.name, device)
        dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
        base = load_base(self.source, device, dtypes[self.dtype], self.prediction_type)
        console.note(base.assumptions)
        if self.quantize is None:
            return base
        # Of the same checkpoint still, and a predictor trained on that one is at home here.
        base = replace(base, checkpoint=base.fingerprint())
        _quantize(base, self.quantize, console)
        return base


def _quantize(base: DiffusersBase, kind: str, console: Console) -> None:
    from ..models.quantized_network import quantize_network_

    with console.progress("quantising", unit="layer") as progress:
        done = quantize_network_(base.unet, kind, progress=progress)
    console.note(
        [f"{len(done.layers)} layers of the UNet are in {kind}, {done.bits_per_weight:.2f} bits a weight: "
         f"{done.bytes_now / 1e6:,.0f} MB instead of {done.bytes_before / 1e6:,.0f} MB"]
    )  # fmt: skip


def device_named(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA where there is one.

    Raises:
        ConfigError: no such device here.
    """
    import torch

    from ..errors import ConfigError

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].strip(" .")
        raise ConfigError(f"device {name!r} cannot be used here ({reason}); use --device cpu") from error
    return device


def add_out_flag(parser: argparse.ArgumentParser, default: str) -> None:
    """The one file that a command writes."""
    parser.add_argument(
        "--out", type=place, default=Path(default), metavar="FILE", help=f"file to write (default: {default})"
    )


def add_caption_flag(parser: argparse.ArgumentParser) -> None:
    """What the pictures show besides the subject."""
    parser.add_argument(
        "--caption",
        action="append",
        default=[],
        metavar="TEXT",
        help="what a picture shows besides the subject, such as 'smiling, at the beach', so that polishing does not "
        "take it for a part of the subject; 'auto' lets the base read it off, 'none' says nothing; once for each "
        "picture, or one of these two for all (default: auto where the base's words are on record, else none)",
    )


def captions_of(given: list[str], base: DiffusersBase, faces: Faces) -> tuple[str, ...] | None:
    """The captions that --caption asks for; None leaves it to the job to read them off.

    Raises:
        ConfigError: 'auto' where the base's words are not on record.
    """
    from ..errors import ConfigError
    from ..miniature.companions import companions_of

    if not given:
        return None
    if given == ["none"]:
        return ()
    count = len(faces.used)
    if given == ["auto"]:
        given = given * count
    if "auto" not in given or len(given) != count:
        # Of a wrong number polishing says so.
        return tuple("" if one == "none" else one for one in given)
    companions = companions_of(base.family.name)
    if companions.describe is None:
        raise ConfigError(
            f"caption 'auto' chooses among the words the base was taught, and {base.family.title}'s are not on record; "
            "write what each picture shows, such as --caption 'smiling, at the beach'"
        )
    described = companions.read_captions(base, faces.at(base.family.picture_size))
    return tuple({"auto": read, "none": ""}.get(one, one) for one, read in zip(given, described, strict=True))
