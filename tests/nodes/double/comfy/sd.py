"""CLIP and VAE as they travel along wires."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .model_patcher import ModelPatcher
from .supported_models_base import ClipTarget

_CPU = torch.device("cpu")


class CLIP:
    def __init__(self, target: ClipTarget) -> None:
        self.tokenizer, self.cond_stage_model = target.tokenizer(), target.clip(device="cpu", model_options={})
        self.patcher = ModelPatcher(self.cond_stage_model, _CPU, _CPU)

    def clone(self) -> CLIP:
        twin = object.__new__(CLIP)
        twin.tokenizer, twin.cond_stage_model = self.tokenizer, self.cond_stage_model
        twin.patcher = self.patcher.clone()
        return twin

    def add_patches(self, patches: dict[str, Any], strength: float = 1.0) -> list[str]:
        return self.patcher.add_patches(patches, strength)

    def tokenize(self, text: str) -> Tensor:
        ids: Tensor = self.tokenizer.ids(text)
        return ids

    def encode_from_tokens(self, tokens: Tensor, return_pooled: bool = False) -> tuple[Tensor, Tensor]:
        self.patcher.patch()
        output = self.cond_stage_model.clip_l.transformer.text_model(tokens)
        return output.last_hidden_state, output.pooler_output

    def encode_from_tokens_scheduled(self, tokens: Tensor) -> list[Any]:
        states, pooled = self.encode_from_tokens(tokens)
        return [[states, {"pooled_output": pooled}]]


class VAE:
    """Its fields are those that ComfyUI's own encode and decode go by."""

    def __init__(self, sd: dict[str, Tensor], dtype: torch.dtype) -> None:
        assert any(name.startswith("taesd_decoder.") for name in sd)
        self.device, self.vae_dtype, self.size = _CPU, dtype, None

    def model_size(self) -> int:
        return sum(weight.numel() * weight.element_size() for weight in self.first_stage_model.parameters())

    def encode(self, pictures: Tensor) -> Tensor:
        latents: Tensor = self.first_stage_model.encode(self.process_input(pictures.movedim(-1, 1)))
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        pictures: Tensor = self.process_output(self.first_stage_model.decode(latents).clone())
        return pictures.movedim(1, -1)
