"""Training the hypernetwork end to end: reference picture in, another picture of the same subject denoised.

No optimised target weights are needed; the frozen base's own loss says how good predicted weights are. Many
subjects share a batch through per-sample adapters.

Source: docs/methods.md, "Training a predictor" (arXiv:2511.03156; for the optional weight supervision
arXiv:2307.06949).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...bases import UNET, get_base
from ...errors import ConfigError
from ...models.hypernetwork import Hypernetwork, weight_supervision
from ...models.image_encoder import ImageFeatures
from ...models.recomputed import recomputed
from ...ops.lidb import AuxiliaryBasis, LidbCoefficients, auxiliary_basis, expand
from ...ops.lowrank import LoraPair
from ...ops.noise import biased_t
from ..base import Base, Conditioning


@dataclass(frozen=True)
class HypernetworkBatch:
    """b subjects with m pictures each."""

    features: ImageFeatures | Tensor  # of the references: tokens (b, n, d), pooled (b, d); or the pictures themselves
    latents: Tensor  # (b * m, c, h, w), subject by subject
    text: Conditioning | Sequence[str]  # (b * m) prompts, encoded or not
    targets: Mapping[str, LidbCoefficients] | None = None  # pre-optimised identities, if there are any
    level: Tensor | None = None  # (b * m) noise levels; drawn if left out, as the two that follow
    noise: Tensor | None = None  # (b * m, c, h, w)
    passes: int = 0  # of the hypernetwork


class HypernetworkObjective(nn.Module):
    """Diffusion loss under the predicted adapter, an L2 on the prediction, and weight supervision if wanted."""

    def __init__(
        self,
        hypernetwork: Hypernetwork,
        base: Base,
        *,
        penalty: float = 3e-3,
        supervision: float = 0.0,
        supervision_from: float = 0.5,
        noise_power: float = 2.0,
        recompute: bool = False,
    ) -> None:
        """Args:
        hypernetwork: to train.
        base: the frozen base to predict for.
        penalty: weight of the mean square of the prediction.
        supervision: weight of the distance to pre-optimised identities.
        supervision_from: share of the training, 0..1, from which on that weight falls, to 0 at the end; 1 keeps it.
        noise_power: above 1 leans towards noise, where identity is decided.
        recompute: compute the insides of the UNet's blocks twice rather than keep them.
        """
        super().__init__()
        if not 0.0 <= supervision_from <= 1.0:
            raise ConfigError(
                f"supervision_from must lie in 0..1, got {supervision_from}; 1 keeps the weight to the end"
            )
        self.hypernetwork, self.penalty, self.supervision = hypernetwork, penalty, supervision
        self.supervision_from, self.noise_power, self.recompute = supervision_from, noise_power, recompute
        self.bases = layer_bases(hypernetwork)
        family = get_base(hypernetwork.config.family)
        self._adapts_text = any(family.part_of(name) != UNET for name in hypernetwork.layer_names)
        # In a list, so that the frozen base is neither a parameter of the objective nor saved with it.
        self._frozen = [base]
        self._held: list[ExitStack] = []
        self._done = 0.0

    def at(self, step: int, steps: int) -> None:
        """Know how far the training is: `on_step` of the loop."""
        self._done = step / max(1, steps)

    @property
    def supervision_now(self) -> float:
        """The weight of the distance to pre-optimised identities, where the training is.

        Source: docs/methods.md, "Training a predictor": it shows the way, and the diffusion loss has the last word.
        """
        left = 1.0 - self.supervision_from
        return self.supervision * (min(1.0, max(0.0, 1.0 - self._done) / left) if left > 0 else 1.0)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the adapters live until the context closes: what is computed twice is computed with them."""
        with ExitStack() as stack:
            if self.recompute:
                stack.enter_context(recomputed(self._frozen[0].modules()[0]))
            self._held.append(stack)
            try:
                yield
            finally:
                self._held.pop()

    def forward(self, batch: HypernetworkBatch, generator: torch.Generator) -> Tensor:
        """Loss of one batch."""
        most = self.hypernetwork.config.refine_steps
        passes = batch.passes or int(torch.randint(1, most + 1, (1,), generator=generator))
        coefficients = self.hypernetwork(batch.features, passes)
        copies = len(batch.latents) // len(next(iter(coefficients.values())).down)
        pairs = expand_batch(coefficients, self.bases, copies)
        with ExitStack() as own:
            (self._held[-1] if self._held else own).enter_context(self._frozen[0].adapted(pairs))
            # The frozen base computes in the numbers of its own weights, as it does when it draws.
            with torch.autocast(batch.latents.device.type, enabled=False):
                loss = self._denoising(batch, generator)
        loss = loss + self.penalty * self.hypernetwork.output_penalty(coefficients)
        weight = self.supervision_now
        if weight > 0.0 and batch.targets is not None:
            # A distance of nearly equal numbers: in half precision there is nothing left of it.
            with torch.autocast(batch.latents.device.type, enabled=False):
                plain = {name: LidbCoefficients(c.down.float(), c.up.float()) for name, c in coefficients.items()}
                loss = loss + weight * weight_supervision(plain, batch.targets)
        return loss

    def _denoising(self, batch: HypernetworkBatch, generator: torch.Generator) -> Tensor:
        """Square error of the base's output with the adapters that are live."""
        base, device = self._frozen[0], batch.latents.device
        level = biased_t(generator, len(batch.latents), self.noise_power) if batch.level is None else batch.level
        noise = batch.noise
        if noise is None:
            noise = torch.randn(batch.latents.shape, generator=generator)
        noise = noise.to(device)
        text = batch.text
        if not isinstance(text, Conditioning):
            with torch.set_grad_enabled(torch.is_grad_enabled() and self._adapts_text):
                text = base.encode_prompt(text)
        output = base.predict(base.noise.noisy(batch.latents, noise, level), level, text)
        return F.mse_loss(output, base.noise.target(batch.latents, noise, level))


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
