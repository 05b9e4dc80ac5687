"""Which tokenizer and text encoder a model has."""

from __future__ import annotations

from typing import Any


class ClipTarget:
    def __init__(self, tokenizer: Any, clip: Any) -> None:
        self.tokenizer, self.clip = tokenizer, clip
