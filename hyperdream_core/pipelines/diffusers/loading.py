"""A base model from disk, through diffusers: the miniature, a diffusers folder, or a single-file checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...bases import BaseFamily, detect_family
from ...bundled import bundled_weights
from ...errors import BaseMismatchError, FileFormatError, MissingDependencyError
from .diffusers_base import DiffusersBase

__all__ = ["MINIATURE", "DiffusersBase", "alphas_cumprod_of", "base_family", "fill_model", "load_base", "tensor_shapes"]

MINIATURE = "miniature"

_LOCAL: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
_OLD_WEIGHTS = ("*.bin", "*.ckpt", "*.pt", "*.pth")


def load_base(
    path: str | Path = MINIATURE, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> DiffusersBase:
    """The base model at a path, without any network access.

    Args:
        path: `miniature`, a folder in the diffusers layout, or a single-file checkpoint (.safetensors) of SD 1.x,
            SD 2.x, SDXL or the miniature.
        device: where to put it.
        dtype: of UNet and text encoders; the VAE stays in float32 where fp16 would overflow it.

    Raises:
        FileFormatError: nothing there, damaged, or not safetensors.
        BaseMismatchError: a checkpoint of an unknown family.
        MissingDependencyError: diffusers or transformers is not installed.
    """
    require_diffusers()
    path = _place(path)
    if path.is_dir():
        base = _load_folder(path, dtype)
    else:
        from .single_file import load_single_file

        base = load_single_file(path, dtype)
    for module in base.modules():
        module.requires_grad_(False).train(False).to(device)
    if dtype == torch.float16 and base.vae.config.get("force_upcast", False):
        base.vae.to(torch.float32)
    return base


def base_family(path: str | Path = MINIATURE) -> BaseFamily:
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


def require_diffusers() -> None:
    """Raise MissingDependencyError unless diffusers and transformers are there; hosts come without the first."""
    for package in ("diffusers", "transformers"):
        if find_spec(package) is None:
            raise MissingDependencyError(package, f"pip install {package}")


def alphas_cumprod_of(scheduler_config: Mapping[str, Any]) -> Tensor:
    """(timesteps,) float32: alpha_bar of a diffusers scheduler configuration."""
    from diffusers import DDPMScheduler

    known = {key: value for key, value in scheduler_config.items() if not key.startswith("_")}
    alphas: Tensor = DDPMScheduler.from_config(known).alphas_cumprod
    return alphas.float()


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a safetensors file's tensors, from its header alone.

    Raises:
        FileFormatError: not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise FileFormatError(
            path,
            f"is not a readable safetensors file ({error}), the only format that is read, because others can run code; "
            "get the checkpoint as .safetensors, or download it again",
        ) from error


def fill_model(path: Path, kind: Any, config: Any, tensors: dict[str, Tensor]) -> nn.Module:
    """A model of this kind with these tensors as its weights, never initialised for nothing.

    Args:
        path: of the weights, for errors.
        kind: diffusers or transformers class.
        config: of the class: a dict for diffusers, a configuration object for transformers.
        tensors: weights by name. A text encoder may have more, such as a projection that the family does not use.

    Raises:
        FileFormatError: a tensor is missing or has another shape, or a diffusers model has one too many.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model: nn.Module = kind(**config) if isinstance(config, dict) else kind(config)
    # transformers before 4.31 counts the numbers of the positions among the weights; the model has made them itself.
    needed = {
        name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if not name.endswith("position_ids")
    }
    if not isinstance(config, dict):
        # transformers 5.6 dropped this level of CLIPTextModel, which checkpoints still have and the miniature has not.
        level = "text_model." if any(name.startswith("text_model.") for name in needed) else ""
        tensors = {
            name if name.startswith("text_projection.") else level + name.removeprefix("text_model."): tensor
            for name, tensor in tensors.items()
        }
    given = {name: tensor for name, tensor in tensors.items() if name in needed}
    for name, shape in needed.items():
        if name not in given or tuple(given[name].shape) != shape:
            found = f"has {tuple(given[name].shape)}" if name in given else "is missing"
            raise FileFormatError(
                path, f"{kind.__name__} needs {name!r} of shape {shape}, but it {found}; get the checkpoint again"
            )
    left = [name for name in tensors if name not in needed]
    if left and isinstance(config, dict):
        raise FileFormatError(
            path,
            f"holds {left[0]!r}, which a {kind.__name__} of its family has not; use an ordinary checkpoint of it",
        )
    model.load_state_dict(given, strict=False, assign=True)
    return model


def _place(path: str | Path) -> Path:
    if str(path) == MINIATURE:
        path = bundled_weights() / "miniature" / "base"
    path = Path(path)
    if not path.exists():
        raise FileFormatError(
            path,
            f"there is no such base at {path}, but 'miniature', a diffusers folder or a .safetensors checkpoint is "
            "expected; check the path",
        )
    return path


def _load_folder(folder: Path, dtype: torch.dtype) -> DiffusersBase:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTokenizer

    family = base_family(folder)
    names = [encoder.name for encoder in family.text_encoders]
    try:
        scheduler_config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
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
            alphas_cumprod=alphas_cumprod_of(scheduler_config),
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise FileFormatError(
            folder,
            f"is not a complete diffusers folder ({error}), but unet, vae, text_encoder, tokenizer and scheduler are "
            "expected; download it again",
        ) from error


def load_vae(folder: Path, dtype: torch.dtype) -> nn.Module:
    """The VAE in a diffusers folder: an AutoencoderKL, AutoencoderTiny or, as the miniature's, AutoencoderDC."""
    from diffusers import AutoencoderKL, AutoencoderTiny
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text("utf-8"))
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


def deep_autoencoder() -> Any:
    """diffusers' class for the miniature's VAE; None before it knew one whose encoder ends without a shortcut.

    The class came with 0.32, which adds the shortcut whatever the configuration says; Forge brings 0.31.
    """
    import diffusers

    kind = getattr(diffusers, "AutoencoderDC", None)
    return kind if kind is not None and "encoder_out_shortcut" in signature(kind).parameters else None


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
