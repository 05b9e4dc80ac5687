"""Image encoders of the hypernetwork: a small convolutional one, and any vision transformer by its configuration."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ConfigError, MissingDependencyError, quoted
from .blocks import GridPooling, ResidualBlock

IMAGE_MEAN_STD: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    # The constants published with OpenAI's CLIP; other vision transformers use ImageNet's.
    "clip_vision_model": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "default": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


VISION_TRANSFORMERS = ("clip_vision_model", "deit", "dinov2", "dinov2_with_registers", "siglip_vision_model", "vit")
"""Types of `transformers` that a predictor's file may ask for: it never chooses freely among its hundreds."""
LARGEST = {"channels": 8192, "blocks": 64, "width": 16_384, "image_size": 1024, "pooled_channels": 4096}
"""The most of each setting."""
_LARGEST_SETTING = 65_536
"""of a vision transformer, other than those that follow"""
_LARGEST_SETTINGS = {"num_hidden_layers": 64, "num_attention_heads": 256, "mlp_ratio": 64, "num_register_tokens": 256}


@dataclass(frozen=True)
class ImageFeatures:
    """What an encoder saw in b images: tokens (b, n, d), and pooled (b, d) for the whole image."""

    tokens: Tensor
    pooled: Tensor


class ImageEncoder(Protocol):
    """Anything with features of a known width and size of picture."""

    width: int
    image_size: int

    def features(self, images: Tensor) -> ImageFeatures: ...


class ConvImageEncoder(nn.Module):
    """A residual convolutional network, (b, 3, image_size, image_size) in 0..1 -> one token per 16x16 px, and pooled.

    Defaults: 8x8 tokens at 128 px; chosen for speed, 200 pictures a second forward and backward on one CPU thread.

    Args:
        channels: of the stem and of the three stages, each of which halves the picture.
        blocks: residual blocks of each stage.
        width: features d of a token.
        image_size: px; other pictures are resized.
        pooled_channels: of each token, in what the pooled feature is read from.
    """

    def __init__(
        self,
        channels: Sequence[int] = (24, 48, 96, 128),
        blocks: Sequence[int] = (1, 1, 2),
        width: int = 128,
        image_size: int = 128,
        pooled_channels: int = 64,
    ) -> None:
        super().__init__()
        for name, numbers in (("channels", channels), ("blocks", blocks), ("width", [width]),
                              ("image_size", [image_size]), ("pooled_channels", [pooled_channels])):  # fmt: skip
            most = LARGEST[name]
            if not all(type(number) is int and 1 <= number <= most for number in numbers):
                raise ConfigError(f"{name} must be whole numbers in 1..{most}, got {quoted(list(numbers))}")
        if len(channels) != 4 or len(blocks) != 3 or image_size % 16:
            raise ConfigError(
                "a conv image encoder needs 4 channel counts, 3 block counts and an image_size in multiples of 16 px; "
                f"got {list(channels)}, {list(blocks)}, {image_size}"
            )
        self.width, self.image_size = width, image_size
        stages: list[nn.Module] = [nn.Conv2d(3, channels[0], 3, 2, 1)]
        for channels_in, channels_out, count in zip(channels[:-1], channels[1:], blocks, strict=True):
            stages.append(ResidualBlock(channels_in, channels_out, stride=2))
            stages.extend(ResidualBlock(channels_out, channels_out) for _ in range(count - 1))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.GroupNorm(8, channels[-1])
        self.project = nn.Linear(channels[-1], width)
        count = (image_size // 16) ** 2
        self.position = nn.Parameter(torch.zeros(count, width))
        self.pool = GridPooling(count, width, pooled_channels)
        # Channels last: a quarter faster on a CPU.
        self.stages.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(self, images: Tensor) -> ImageFeatures:
        """Tokens (b, n, width) in reading order and pooled (b, width)."""
        images = _resized(images, self.image_size).contiguous(memory_format=torch.channels_last)
        grid = functional.silu(self.norm(self.stages(2 * images - 1)))
        tokens = self.project(rearrange(grid, "b c h w -> b (h w) c")) + self.position
        return ImageFeatures(tokens, self.pool(tokens))

    def forward(self, images: Tensor) -> ImageFeatures:
        return self.features(images)


class RegressionHead(nn.Module):
    """An image encoder with a linear read-out of its pooled feature, (b, 3, h, w) -> (b, outputs), for pretraining.

    The encoder does not know the head, so nothing of it stays once the encoder goes into a hypernetwork.
    """

    def __init__(self, encoder: ConvImageEncoder, outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(nn.LayerNorm(encoder.width), nn.Linear(encoder.width, outputs))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder.features(images).pooled)


class VitImageEncoder(nn.Module):
    """A vision transformer of the `transformers` package, built from its configuration without a download.

    Args:
        model_type: as `transformers` calls it, e.g. "clip_vision_model", "dinov2", "vit".
        model: sizes from that model's configuration, e.g. hidden_size: numbers, and hidden_act; the rest is default.
        mean, std: per channel, of the pictures the model was trained on; the type's own by default.
    """

    def __init__(
        self,
        model_type: str,
        model: Mapping[str, Any] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        try:
            from transformers import AutoConfig, AutoModel
        except ImportError as error:
            raise MissingDependencyError("transformers", "pip install transformers") from error
        if model_type not in VISION_TRANSFORMERS:
            known = ", ".join(VISION_TRANSFORMERS)
            raise ConfigError(f"unknown type of vision transformer {quoted(model_type)}; known: {known}")
        for name, value in (model or {}).items():
            _check_setting(name, value)
        config = AutoConfig.for_model(model_type, **(model or {}))
        self.model = AutoModel.from_config(config, trust_remote_code=False)
        self.width, self.image_size = int(config.hidden_size), int(config.image_size)
        usual_mean, usual_std = IMAGE_MEAN_STD.get(model_type, IMAGE_MEAN_STD["default"])
        self.mean, self.std = tuple(mean or usual_mean), tuple(std or usual_std)
        for name, numbers, low in (("mean", self.mean, -1000.0), ("std", self.std, 1e-6)):
            if len(numbers) != 3 or not all(type(one) in (int, float) and low <= one <= 1000 for one in numbers):
                raise ConfigError(f"{name} must be 3 numbers in {low:g}..1000, got {quoted(numbers)}")
        if not 1 <= self.image_size <= LARGEST["image_size"]:
            raise ConfigError(f"image_size must lie in 1..{LARGEST['image_size']}, got {self.image_size}")

    def features(self, images: Tensor) -> ImageFeatures:
        """Tokens (b, n, width) of the last layer, the class token first where there is one, and pooled (b, width)."""
        mean, std = (images.new_tensor(constant)[:, None, None] for constant in (self.mean, self.std))
        images = (_resized(images, self.image_size) - mean) / std
        tokens = self.model(pixel_values=images).last_hidden_state
        # Not the model's own pooler: some have none, and in `vit` it comes untrained.
        return ImageFeatures(tokens, tokens[:, 0])

    def forward(self, images: Tensor) -> ImageFeatures:
        return self.features(images)


IMAGE_ENCODERS: dict[str, type[ConvImageEncoder] | type[VitImageEncoder]] = {
    "conv": ConvImageEncoder,
    "vit": VitImageEncoder,
}


def build_image_encoder(config: Mapping[str, Any]) -> ConvImageEncoder | VitImageEncoder:
    """The encoder that a mapping {"kind": "conv" | "vit", ...its arguments} describes, untrained.

    Raises:
        ConfigError: an unknown kind or argument, or values that make no encoder.
    """
    arguments = {name: value for name, value in config.items() if name != "kind"}
    kind = str(config.get("kind"))
    if kind not in IMAGE_ENCODERS:
        raise ConfigError(f"unknown kind of image encoder {quoted(kind)}; known: {', '.join(sorted(IMAGE_ENCODERS))}")
    known = inspect.signature(IMAGE_ENCODERS[kind]).parameters
    if unknown := sorted(set(arguments) - set(known)):
        raise ConfigError(f"image encoder {kind!r} has no setting {quoted(unknown[0])}; known: {', '.join(known)}")
    try:
        return IMAGE_ENCODERS[kind](**arguments)
    except building_errors() as error:
        raise ConfigError(
            f"no image encoder {kind!r} can be built of {quoted(arguments, 300)} ({str(error)[:200]}); correct these"
        ) from error


def building_errors() -> tuple[type[Exception], ...]:
    """What torch and transformers raise for settings of which no network can be built or run."""
    errors: list[type[Exception]] = [
        ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, OSError, RuntimeError,
        TypeError, ValueError,
    ]  # fmt: skip
    try:
        # transformers 5 checks its configurations by a class that is none of these.
        from huggingface_hub.errors import StrictDataclassError
    except ImportError:
        return tuple(errors)
    return (*errors, StrictDataclassError)


def _check_setting(name: str, value: Any) -> None:
    """Files carry these settings, and some others make transformers fetch and run code: auto_map, kernels."""
    if name == "hidden_act" and isinstance(value, str):
        return
    if not isinstance(value, (int, float)):
        raise ConfigError(f"setting {quoted(name)} of a vision transformer must be a number, got {quoted(value)}")
    most = _LARGEST_SETTINGS.get(name, LARGEST["image_size"] if name == "image_size" else _LARGEST_SETTING)
    if not -most <= value <= most:
        raise ConfigError(f"setting {quoted(name)} of a vision transformer must be {most} or less, got {quoted(value)}")


def combine(features: ImageFeatures, weights: Tensor | None = None) -> ImageFeatures:
    """Features of b references of one subject as those of a single one: their weighted mean, leading axis 1.

    Args:
        features: tokens (b, n, d) and pooled (b, d).
        weights: (b,), 0 or more, not all 0; equal by default.

    Raises:
        ConfigError: weights of another length, negative, or all 0.
    """
    count = features.pooled.shape[0]
    if weights is None:
        weights = features.pooled.new_ones(count)
    if weights.shape != (count,) or bool((weights < 0).any()) or not float(weights.sum()) > 0:
        raise ConfigError(f"{count} references need {count} weights, 0 or more and not all 0; got {weights.tolist()}")
    shares = (weights / weights.sum()).to(features.pooled)
    return ImageFeatures(
        torch.einsum("b,bnd->nd", shares, features.tokens)[None], torch.einsum("b,bd->d", shares, features.pooled)[None]
    )


def _resized(images: Tensor, size: int) -> Tensor:
    if images.shape[-2:] == (size, size):
        return images
    # In float32: on a CPU torch has no other kernel for it.
    resized = functional.interpolate(images.float(), (size, size), mode="bicubic", antialias=True)
    return resized.clamp(0, 1).to(images.dtype)
