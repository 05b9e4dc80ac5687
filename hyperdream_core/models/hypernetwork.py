"""The hypernetwork: pictures of a subject in, LiDB coefficients of every target layer out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..bases import get_base
from ..errors import ConfigError
from ..ops.lidb import MOST_COLUMNS, LidbCoefficients, TargetLayer, basis_sizes, core_distance
from .image_encoder import ImageFeatures, build_image_encoder
from .weight_decoder import CodeShape, WeightDecoder

LARGEST = {
    "rank": 128,
    "down_dim": MOST_COLUMNS,
    "up_dim": MOST_COLUMNS,
    "width": 16_384,
    "decoder_layers": 64,
    "heads": 1024,
    "feed_forward_ratio": 64,
    "refine_steps": 1000,
}
"""The most of each; only a hostile file asks for more, and 10^9 layers would be built for ever."""


@dataclass(frozen=True, kw_only=True)
class HypernetworkConfig:
    """The dimensions of a hypernetwork; they travel in its file."""

    family: str
    """Base family whose layers it adapts."""
    target_set: str = "attention"
    """Which of the base's layers it adapts."""
    rank: int = 1
    """Rank of the predicted identity."""
    down_dim: int = 50
    """Basis size on the input side of a layer, clipped to it; the paper's b."""
    up_dim: int = 100
    """Basis size on the output side of a layer, clipped to it; the paper's a."""
    width: int = 128
    """Features of a weight token."""
    decoder_layers: int = 2
    """Transformer layers, run again in each pass; two as in the paper."""
    heads: int = 4
    """Attention heads of the decoder."""
    feed_forward_ratio: int = 2
    """Hidden features of the feed-forward layers, in widths."""
    refine_steps: int = 4
    """Passes unless the caller says otherwise."""
    heads_per: Literal["layer", "shape"] = "layer"
    """An output head for each layer, or one for all layers of a shape."""
    feedback: bool = True
    """Show each pass the coefficients so far."""
    freeze_image_encoder: bool = True
    """Leave the image encoder as it is in training."""
    image_encoder: Mapping[str, Any] = field(default_factory=lambda: {"kind": "conv"})
    """Kind and settings of the image encoder."""

    def __post_init__(self) -> None:
        for name, most in LARGEST.items():
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"{name} must be 1 or more, got {value}")
            if value > most:
                raise ConfigError(f"{name} must be {most} or less, got {value}")


class Hypernetwork(nn.Module):
    """Frozen image encoder, weight decoder and the start they depart from.

    The down half of every prediction departs from one seeded constant and the up half from zero. So an output of
    zero is an identity with no effect, whose gradient is not zero, and all predictions share one gauge: the
    regression of weights stays learnable (docs/methods.md, "Canonical weights").
    """

    def __init__(self, config: HypernetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_image_encoder(config.image_encoder)
        if config.freeze_image_encoder:
            self.encoder.requires_grad_(False).train(False)
        layers = get_base(config.family).layers(config.target_set)
        self.layer_names = tuple(layer.name for layer in layers)
        shapes = {layer.name: _code_shape(layer, config) for layer in layers}
        # Layers of one shape lie side by side inside, so that a group is a slice and not a gather.
        self._inner_names = sorted(self.layer_names, key=shapes.__getitem__)
        self.decoder = WeightDecoder(
            [shapes[name] for name in self._inner_names],
            self.encoder.width,
            width=config.width,
            layers=config.decoder_layers,
            heads=config.heads,
            feed_forward_ratio=config.feed_forward_ratio,
            heads_per=config.heads_per,
            feedback=config.feedback,
        )
        for index, group in enumerate(self.decoder.groups):
            start = _draw_start(index, group.layers, config.rank, group.shape.down_dim)
            self.register_buffer(f"start{index}", start)

    def train(self, mode: bool = True) -> Hypernetwork:
        super().train(mode)
        if self.config.freeze_image_encoder:
            self.encoder.train(False)
        return self

    def parameters_to_train(self) -> Iterator[nn.Parameter]:
        """All parameters but those of a frozen image encoder."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def encode(self, images: Tensor) -> ImageFeatures:
        """Features of pictures (b, 3, h, w) in 0..1, for any number of calls of the network."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_image_encoder):
            return self.encoder.features(images)

    def forward(
        self, references: Tensor | ImageFeatures, refine_steps: int | None = None
    ) -> dict[str, LidbCoefficients]:
        """Coefficients down (b, r, p) and up (b, a, r) of each layer.

        Args:
            references: pictures (b, 3, h, w) in 0..1 of b subjects, or what `encode` made of them.
            refine_steps: passes; the configured number by default.
        """
        features = self.encode(references) if isinstance(references, Tensor) else references
        passes = self.config.refine_steps if refine_steps is None else refine_steps
        return self._coefficients(self.decoder(features, _checked_passes(passes)))

    def start(self, samples: int = 1) -> dict[str, LidbCoefficients]:
        """The coefficients (b, ...) of which every prediction is a change; where weight supervision's targets start."""
        like = self.decoder.embedding
        return self._coefficients(
            [like.new_zeros(samples, group.layers, group.shape.size) for group in self.decoder.groups]
        )

    def output_penalty(self, coefficients: Mapping[str, LidbCoefficients]) -> Tensor:
        """Mean square of what was predicted: the change of the coefficients from their start.

        Source: the output regularisation of "Finetuning-Free Personalization via Hypernetworks", arXiv:2511.03156.
        """
        squares, count = [], 0
        for index, group in enumerate(self.decoder.groups):
            layers = [coefficients[name] for name in self._inner_names[group.start : group.stop]]
            down = torch.stack([layer.down for layer in layers], dim=1) - self._start(index)
            up = torch.stack([layer.up for layer in layers], dim=1)
            squares += [down.float().square().sum(), up.float().square().sum()]
            count += down.numel() + up.numel()
        return torch.stack(squares).sum() / count

    def _start(self, group: int) -> Tensor:
        """(layers, r, p)"""
        return self.get_buffer(f"start{group}")

    def _coefficients(self, codes: list[Tensor]) -> dict[str, LidbCoefficients]:
        found: list[LidbCoefficients] = []
        for index, (code, group) in enumerate(zip(codes, self.decoder.groups, strict=True)):
            down, up = group.shape.split(code)
            # unbind: one node in the graph, where an index per layer would fill a whole zero gradient each.
            layers = zip((self._start(index) + down).unbind(1), up.unbind(1), strict=True)
            found.extend(LidbCoefficients(layer_down, layer_up) for layer_down, layer_up in layers)
        by_name = dict(zip(self._inner_names, found, strict=True))
        return {name: by_name[name] for name in self.layer_names}


def weight_supervision(predicted: Mapping[str, LidbCoefficients], targets: Mapping[str, LidbCoefficients]) -> Tensor:
    """Mean over samples and layers of the squared distance between predicted and pre-optimised weight changes.

    On the changes and not on the coefficients, which have a gauge freedom that made this loss unlearnable in public
    re-implementations (docs/methods.md, "Canonical weights").

    Args:
        predicted, targets: layer name -> down (b, r, p) and up (b, a, r); ranks may differ between the two.

    Source: beta's term in HyperDreamBooth, arXiv:2307.06949, in the form of docs/methods.md, "Canonical weights".

    Raises:
        ConfigError: the two are for different layers.
    """
    if different := sorted(predicted.keys() ^ targets.keys()):
        raise ConfigError(
            f"prediction and pre-optimised identity differ in {len(different)} layers, first {different[0]!r}; "
            "optimise the identities with the hypernetwork's base family and target set"
        )
    return torch.stack([core_distance(predicted[name], targets[name]).mean() for name in predicted]).mean()


def _code_shape(layer: TargetLayer, config: HypernetworkConfig) -> CodeShape:
    p, a = basis_sizes(layer.in_features, layer.out_features, config.down_dim, config.up_dim)
    sizes = (layer.in_features, layer.out_features) if config.heads_per == "shape" else ()
    return CodeShape(p, a, config.rank, sizes)


def _draw_start(group: int, layers: int, rank: int, p: int) -> Tensor:
    """(layers, r, p), rows of norm about 1; uniform, because NumPy's normals differ in the last bit between systems."""
    if torch.empty(0).device.type == "meta":  # being measured, not made
        return torch.empty(layers, rank, p)
    uniform = np.random.RandomState(group).random_sample((layers, rank, p))
    return torch.from_numpy((2 * uniform - 1) * (3 / p) ** 0.5).float()


def _checked_passes(refine_steps: int) -> int:
    if not 1 <= refine_steps <= LARGEST["refine_steps"]:
        raise ConfigError(f"refine_steps must lie in 1..{LARGEST['refine_steps']}, got {refine_steps}")
    return refine_steps
