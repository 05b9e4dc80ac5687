"""CLIP-L in a size of one's own, with the real tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hyperdream_core.bundled import bundled_weights


class SD1Tokenizer:
    def __init__(self) -> None:
        from transformers import CLIPTokenizer

        folder = bundled_weights() / "miniature" / "base" / "tokenizer"
        self._tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)

    def ids(self, text: str) -> Tensor:
        ids: Tensor = self._tokenizer(
            [text], padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        return ids


class _Transformer(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        from transformers import CLIPTextConfig, CLIPTextModel

        self.text_model = CLIPTextModel(CLIPTextConfig(**config, bos_token_id=49406, eos_token_id=49407))
        self.text_projection = nn.Linear(config["hidden_size"], config["hidden_size"], bias=False)

    def load_state_dict(self, tensors: Mapping[str, Tensor], strict: bool = True) -> Any:  # type: ignore[override]
        known = self.state_dict()
        # Releases of transformers differ in whether CLIPTextModel has a level `text_model` of its own.
        own = {name if name in known else f"text_model.{name}": tensor.float() for name, tensor in tensors.items()}
        return super().load_state_dict(own, strict=strict)


class SD1ClipModel(nn.Module):
    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
        super().__init__()
        self.clip_l = nn.Module()
        self.clip_l.transformer = _Transformer(model_options["clip_l_model_config"])
