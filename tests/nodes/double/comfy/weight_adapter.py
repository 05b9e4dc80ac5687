"""The stock LoRA adapter: factors in, weight change out."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class LoRAAdapter:
    def __init__(self, loaded_keys: set[str], weights: tuple[Any, ...]) -> None:
        self.loaded_keys, self.weights = loaded_keys, weights

    def delta(self) -> Tensor:
        """up @ down times alpha / rank, or 1 without alpha."""
        up, down, alpha = self.weights[:3]
        product: Tensor = up @ down
        return product if alpha is None else product * (alpha / down.shape[0])
