"""Training the hypernetwork end to end: reference picture in, another picture of the same subject denoised.

No optimised target weights are needed; the frozen base's own loss says how good predicted weights are. Many
subjects share a batch through per-sample adapters.

Source: docs/methods.md, "Training a predictor" (arXiv:2511.03156; for the optional weight supervision
arXiv:2307.06949).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...bases import get_base
from ...models.hypernetwork import Hypernetwork, weight_supervision
from ...models.image_encoder import ImageFeatures
from ...ops.lidb import AuxiliaryBasis, LidbCoefficients, auxiliary_basis, expand
from ...ops.lowrank import LoraPair
from ...ops.noise import biased_t
from ..base import Base, Conditioning


@dataclass(frozen=True)
class HypernetworkBatch:
    """b subjects with m pictures each."""

    features: ImageFeatures  # of the references: tokens (b, n, d), pooled (b, d)
    latents: Tensor  # (b * m, c, h, w), subject by subject
    text: Conditioning  # (b * m) prompts
    targets: Mapping[str, LidbCoefficients] | None = None  # pre-optimised identities, if there are any


class HypernetworkObjective(nn.Module):
    """Diffusion loss under the predicted adapter, an L2 on the prediction, and weight supervision if wanted."""

    def __init__(
        self,
        hypernetwork: Hypernetwork,
        base: Base,
        *,
        penalty: float = 3e-3,
        supervision: float = 0.0,
        noise_power: float = 2.0,
    ) -> None:
        """Args:
        hypernetwork: to train.
        base: the frozen base to predict for.
        penalty: weight of the mean square of the prediction.
        supervision: weight of the distance to pre-optimised identities.
        noise_power: above 1 leans towards noise, where identity is decided.
        """
        super().__init__()
        self.hypernetwork, self.penalty, self.supervision = hypernetwork, penalty, supervision
        self.noise_power = noise_power
        self.bases = layer_bases(hypernetwork)
        # In a list, so that the frozen base is neither a parameter of the objective nor saved with it.
        self._frozen = [base]

    def forward(self, batch: HypernetworkBatch, generator: torch.Generator) -> Tensor:
        """Loss of one batch."""
        passes = int(torch.randint(1, self.hypernetwork.config.refine_steps + 1, (1,), generator=generator))
        coefficients = self.hypernetwork(batch.features, passes)
        copies = len(batch.latents) // len(batch.features.pooled)
        pairs = expand_batch(coefficients, self.bases, copies)
        base, device = self._frozen[0], batch.latents.device
        level = biased_t(generator, len(batch.latents), self.noise_power)
        noise = torch.randn(batch.latents.shape, generator=generator).to(device)
        with base.adapted(pairs):
            output = base.predict(base.noise.noisy(batch.latents, noise, level), level, batch.text)
        loss = F.mse_loss(output, base.noise.target(batch.latents, noise, level))
        loss = loss + self.penalty * self.hypernetwork.output_penalty(coefficients)
        if self.supervision > 0.0 and batch.targets is not None:
            loss = loss + self.supervision * weight_supervision(coefficients, batch.targets)
        return loss


def layer_bases(hypernetwork: Hypernetwork) -> dict[str, AuxiliaryBasis]:
    """The frozen basis of every layer the hypernetwork predicts for."""
    config = hypernetwork.config
    return {
        layer.name: auxiliary_basis(
            config.family, layer.name, layer.in_features, layer.out_features, config.down_dim, config.up_dim
        )
        for layer in get_base(config.family).layers(config.target_set)
    }


def expand_batch(
    coefficients: Mapping[str, LidbCoefficients], bases: Mapping[str, AuxiliaryBasis], copies: int = 1
) -> dict[str, LoraPair]:
    """Per-sample LoRA pairs, down (b * copies, r, i) and up (b * copies, o, r), of b predicted identities."""
    pairs = {}
    for name, layer in coefficients.items():
        pair = expand(layer, bases[name])
        if copies > 1:
            pair = LoraPair(pair.down.repeat_interleave(copies, 0), pair.up.repeat_interleave(copies, 0))
        pairs[name] = pair
    return pairs
