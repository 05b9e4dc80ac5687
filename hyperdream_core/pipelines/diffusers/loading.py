"""A base model from disk, through diffusers: the miniature, a diffusers folder, or a single-file checkpoint."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from ...bases import BaseFamily
from ...bundled import SHIPPED, bundled_weights
from ...errors import FileFormatError
from ...models.one_thread import BUILDING
from ...regular_file import check_regular
from .building import require_diffusers
from .diffusers_base import DiffusersBase
from .folder import folder_family, load_folder, unet_files
from .ldm_tensors import UNET
from .single_file import file_family, load_single_file
from .weights import WeightFiles, check_weights


def load_base(
    path: str | Path = SHIPPED,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    prediction_type: str | None = None,
) -> DiffusersBase:
    """The base model at a path, without any network access.

    Args:
        path: `miniature`, a folder in the diffusers layout, or a single-file checkpoint (.safetensors) of SD 1.x,
            SD 2.x, SDXL or the miniature.
        device: where to put it.
        dtype: of UNet and text encoders; the VAE stays in float32 where fp16 would overflow it.
        prediction_type: `epsilon` or `v_prediction`, against whatever the base says; None follows it, and where it
            says nothing takes what is usual in its family, which `DiffusersBase.assumptions` then says.

    Raises:
        FileFormatError: nothing there, damaged, not safetensors, quantised, not of its configuration, or a weight
            that is NaN or infinite in `dtype`.
        BaseMismatchError: a checkpoint of an unknown family.
        ConfigError: another prediction type.
        MissingDependencyError: diffusers or transformers is not installed.
    """
    require_diffusers()
    path = _place(path)
    with BUILDING:
        load = load_folder if path.is_dir() else load_single_file
        base = load(path, dtype, prediction_type)
    for module in base.modules():
        module.requires_grad_(False).train(False).to(device)
    if dtype == torch.float16 and getattr(base.vae.config, "force_upcast", False):
        base.vae.to(torch.float32)
    _check_numbers(path, base)
    return base


def _check_numbers(path: Path, base: DiffusersBase) -> None:
    """After the last conversion, which may make infinity of what was finite."""
    parts = ("unet", "vae", *(encoder.name for encoder in base.family.text_encoders))
    for part, module in zip(parts, base.modules(), strict=True):
        check_weights(path, {f"{part}.{name}": tensor for name, tensor in module.state_dict().items()})


def base_family(path: str | Path = SHIPPED) -> BaseFamily:
    """The family of the base that `load_base` would load, from headers alone: in a moment, whatever its size.

    Raises:
        FileFormatError: nothing there, damaged, not safetensors, quantised or without one of its parts.
        BaseMismatchError: a checkpoint of an unknown family.
    """
    path = _place(path)
    return folder_family(path) if path.is_dir() else file_family(WeightFiles.of([path]))


def base_numbers(path: str | Path = SHIPPED) -> int:
    """How many numbers the weights of such a base's UNet are, from headers alone.

    Raises:
        FileFormatError: as `base_family`.
    """
    path = _place(path)
    files, start = (unet_files(path), "") if path.is_dir() else (WeightFiles.of([path]), UNET)
    return sum(math.prod(shape) for name, shape in files.shapes.items() if name.startswith(start))


def _place(path: str | Path) -> Path:
    if str(path) == SHIPPED:
        path = bundled_weights() / SHIPPED / "base"
    path = Path(path)
    if not path.exists():
        raise FileFormatError(
            path,
            f"there is no such base at {path}, but {SHIPPED!r}, a diffusers folder or a .safetensors checkpoint is "
            "expected; check the path",
        )
    if not path.is_dir():
        check_regular(path)
    return path
