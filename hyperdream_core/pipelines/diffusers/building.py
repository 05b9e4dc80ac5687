"""Parts of a base from configurations and tensors, as folders and single files both need them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...errors import ConfigError, FileFormatError, MissingDependencyError, quoted
from ...json_text import read_json
from ...ops.noise import DiscreteDiffusion, NoiseProcess, RectifiedFlow
from ...regular_file import check_regular

_MOST_LAYERS, _MOST_ENTRIES, _MOST = 64, 1000, 10_000_000
_BOUNDS = {
    "num_train_timesteps": (2, 100_000),
    "beta_start": (0, 0.9999),
    "beta_end": (0, 0.9999),
    "shift": (1e-3, 1e3),
}


def require_diffusers() -> None:
    """Raise MissingDependencyError unless diffusers and transformers are there; hosts come without the first."""
    for package in ("diffusers", "transformers"):
        if find_spec(package) is None:
            raise MissingDependencyError(package, f"pip install {package}")


def noise_process_of(scheduler_config: Mapping[str, Any]) -> NoiseProcess:
    """The noise process that a diffusers scheduler configuration describes.

    Raises:
        ConfigError: an unknown prediction type, EDM's noise, or a number out of range.
    """
    from diffusers import DDPMScheduler

    name = str(scheduler_config.get("_class_name", ""))
    if name.startswith("EDM"):
        raise ConfigError(
            f"the noise schedule is {quoted(name)}, which is not understood; use a base with epsilon or v"
        )
    for key, (least, most) in _BOUNDS.items():
        value = scheduler_config.get(key, least)
        kinds = int if key == "num_train_timesteps" else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
            raise ConfigError(f"{key} of the noise schedule is {quoted(str(value))}, but {least} to {most} is expected")
    if name.startswith("FlowMatch"):
        return RectifiedFlow(
            shift=float(scheduler_config.get("shift", 1.0)),
            time_scale=float(scheduler_config.get("num_train_timesteps", 1000)),
        )
    known = {key: value for key, value in scheduler_config.items() if not key.startswith("_")}
    alphas: Tensor = DDPMScheduler.from_config(known).alphas_cumprod
    return DiscreteDiffusion(alphas.float(), str(scheduler_config.get("prediction_type", "epsilon")))


def bounded_config(path: Path) -> dict[str, Any]:
    """A network's configuration in a folder, with no number so large that building it would not end.

    Raises:
        FileFormatError: not there, no JSON, or out of bounds.
    """
    config: dict[str, Any] = read_json(path, finite=False)
    for key, value in config.items():
        most = _MOST_LAYERS if "layers" in key else _MOST
        if not _within(value, most):
            raise FileFormatError(
                path, f"has {key!r} beyond all bases ({most:,} at most is expected); get the folder again"
            )
    return config


def _within(value: Any, most: int) -> bool:
    if isinstance(value, dict):
        return len(value) <= _MOST_ENTRIES and all(_within(one, most) for one in value.values())
    if isinstance(value, list):
        return len(value) <= _MOST_ENTRIES and all(_within(one, most) for one in value)
    return not isinstance(value, (int, float)) or -most <= value <= most


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a safetensors file's tensors, from its header alone.

    Raises:
        FileFormatError: not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    check_regular(path)
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


def deep_autoencoder() -> Any:
    """diffusers' class for the miniature's VAE; None before it knew one whose encoder ends without a shortcut.

    The class came with 0.32, which adds the shortcut whatever the configuration says; Forge brings 0.31.
    """
    import diffusers

    kind = getattr(diffusers, "AutoencoderDC", None)
    return kind if kind is not None and "encoder_out_shortcut" in signature(kind).parameters else None
