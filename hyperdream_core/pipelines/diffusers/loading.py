"""A base model from disk, through diffusers: the miniature, a diffusers folder, or a single-file checkpoint."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ...bases import BaseFamily, detect_family
from ...bundled import SHIPPED, bundled_weights
from ...errors import BaseMismatchError, ConfigError, FileFormatError
from ...json_text import read_json
from ...models.one_thread import BUILDING
from ...regular_file import check_regular
from .building import bounded_config, deep_autoencoder, fill_model, noise_process_of, require_diffusers, tensor_shapes
from .diffusers_base import DiffusersBase
from .single_file import load_single_file
from .weights import check_weights

_LOCAL: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
_WHILE_BUILDING = (OSError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_OLD_WEIGHTS = ("*.bin", "*.ckpt", "*.pt", "*.pth")


def load_base(
    path: str | Path = SHIPPED, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> DiffusersBase:
    """The base model at a path, without any network access.

    Args:
        path: `miniature`, a folder in the diffusers layout, or a single-file checkpoint (.safetensors) of SD 1.x,
            SD 2.x, SDXL or the miniature.
        device: where to put it.
        dtype: of UNet and text encoders; the VAE stays in float32 where fp16 would overflow it.

    Raises:
        FileFormatError: nothing there, damaged, not safetensors, or a weight that is NaN or infinite in `dtype`.
        BaseMismatchError: a checkpoint of an unknown family.
        MissingDependencyError: diffusers or transformers is not installed.
    """
    require_diffusers()
    path = _place(path)
    with BUILDING:
        base = _load_folder(path, dtype) if path.is_dir() else load_single_file(path, dtype)
    for module in base.modules():
        module.requires_grad_(False).train(False).to(device)
    if dtype == torch.float16 and base.vae.config.get("force_upcast", False):
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
        FileFormatError: nothing there, damaged, or not safetensors.
        BaseMismatchError: a checkpoint of an unknown family.
    """
    path = _place(path)
    shapes: dict[str, tuple[int, ...]] = {}
    for file in _weight_files(path / "unet") if path.is_dir() else [path]:
        shapes.update(tensor_shapes(file))
    try:
        return detect_family(shapes)
    except BaseMismatchError as error:
        raise BaseMismatchError(f"{path if path.is_dir() else path.name}: {error}") from error


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


def _load_folder(folder: Path, dtype: torch.dtype) -> DiffusersBase:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTokenizer

    family = base_family(folder)
    names = [encoder.name for encoder in family.text_encoders]
    try:
        for part in ("unet", *names):
            bounded_config(folder / part / "config.json")
        scheduler_config = read_json(folder / "scheduler" / "scheduler_config.json", finite=False)
        return DiffusersBase(
            family=family,
            unet=UNet2DConditionModel.from_pretrained(
                folder / "unet", variant=_variant(_weight_files(folder / "unet")), torch_dtype=dtype, **_LOCAL
            ),
            vae=load_vae(folder / "vae", dtype),
            text_encoders=tuple(_load_text_encoder(folder / name, dtype) for name in names),
            tokenizers=tuple(
                CLIPTokenizer.from_pretrained(folder / name.replace("text_encoder", "tokenizer"), local_files_only=True)
                for name in names
            ),
            scheduler_config=scheduler_config,
            noise=noise_process_of(scheduler_config),
        )
    except (*_WHILE_BUILDING, ConfigError, FileFormatError) as error:
        if isinstance(error, FileFormatError) and not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise FileFormatError(
            folder,
            f"is not a complete diffusers folder ({error}), but unet, vae, text_encoder, tokenizer and scheduler are "
            "expected; download it again",
        ) from error


def load_vae(folder: Path, dtype: torch.dtype) -> nn.Module:
    """The VAE in a diffusers folder: an AutoencoderKL, AutoencoderTiny or, as the miniature's, AutoencoderDC."""
    from diffusers import AutoencoderKL, AutoencoderTiny
    from safetensors.torch import load_file

    config = bounded_config(folder / "config.json")
    name, files = config.get("_class_name"), _weight_files(folder)
    if name == "AutoencoderDC":
        kind = deep_autoencoder()
        if kind is None:
            return _older_vae(config, files[-1], dtype)
        # Not by from_pretrained, which warns of `block_out_channels`, an entry that is there for pipelines.
        known = {key: config[key] for key in signature(kind).parameters if key in config}
        tensors = {key: tensor.to(dtype) for key, tensor in load_file(files[-1]).items()}
        deep: Any = fill_model(files[-1], kind, known, tensors)
        deep.register_to_config(block_out_channels=config["block_out_channels"])
        return cast("nn.Module", deep)
    flat = AutoencoderTiny if name == "AutoencoderTiny" else AutoencoderKL
    vae: nn.Module = flat.from_pretrained(folder, variant=_variant(files), torch_dtype=dtype, **_LOCAL)
    return vae


def _older_vae(config: dict[str, Any], file: Path, dtype: torch.dtype) -> nn.Module:
    """The same without diffusers' class."""
    from safetensors.torch import load_file

    from ...models.small_autoencoder import LikeDiffusers

    try:
        vae = LikeDiffusers(config, load_file(file))
    except RuntimeError as error:
        raise FileFormatError(
            file, f"is not the VAE of its configuration ({error}); install HyperDream again"
        ) from error
    return vae.to(dtype)


def _load_text_encoder(folder: Path, dtype: torch.dtype) -> nn.Module:
    # Not by from_pretrained, which shows bars of its own and takes other arguments in every other release.
    from safetensors.torch import load_file
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if folder.name == "text_encoder_2" else CLIPTextModel
    file = _weight_files(folder)[-1]  # the plain form, if there is an fp16 one besides
    tensor_shapes(file)
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    return fill_model(file, kind, CLIPTextConfig.from_pretrained(folder, local_files_only=True), tensors)


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if files:
        for file in files:
            check_regular(file)
        return files
    old = next((file for pattern in _OLD_WEIGHTS for file in folder.glob(pattern)), None)
    if old is not None:
        raise FileFormatError(
            old,
            f"is the only kind of weights in {folder}, but only .safetensors is read, because old formats can run "
            "code; get the safetensors form of this model",
        )
    raise FileFormatError(
        folder, f"has no weights (.safetensors) in {folder}, but a base needs them; download the folder again"
    )


def _variant(files: list[Path]) -> str | None:
    """`fp16` if that is the only form there."""
    return "fp16" if all(".fp16." in file.name for file in files) else None
