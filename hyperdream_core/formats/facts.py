"""A file's metadata, checked entry by entry: it comes from strangers, as texts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import BaseMismatchError, FileFormatError


class Facts:
    """Reads single entries of one file's metadata, and refuses the file by name if one is not what it must be."""

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        self.path = path
        self.metadata = metadata

    def text(self, key: str) -> str:
        """The entry, which must be there."""
        if key not in self.metadata:
            raise FileFormatError(
                self.path, f"lacks {key!r} in its metadata, which every file of its kind has. Get it again."
            )
        return self.metadata[key]

    def one_of(self, key: str, known: Iterable[str]) -> str:
        """The entry, which must be one of the known words."""
        value = self.text(key)
        if value not in known:
            raise FileFormatError(
                self.path, f"has {key} {value!r}, but {', '.join(known)} are known here. Update HyperDream."
            )
        return value

    def whole_number(self, key: str) -> int:
        """The entry as a number in 1..99999."""
        value = self.text(key)
        if not re.fullmatch("[1-9][0-9]{0,4}", value):
            raise FileFormatError(
                self.path, f"has {key} {value!r}, but a whole number of 1 or more is expected. Get the file again."
            )
        return int(value)

    def check_digest(self, key: str, expected: str, thing: str) -> None:
        """Refuse the file unless its digest of `thing` is the one of this release."""
        found = self.text(key)
        if found != expected:
            raise BaseMismatchError(
                f"{self.path.name}: was made with another {thing} (digest {found[:12]}) than this release draws "
                f"({expected[:12]}), so its numbers would mean noise. Use the HyperDream release that made it, and "
                "export a LoRA there."
            )

    def facts(self, key: str) -> dict[str, str]:
        """The entry as a JSON object of texts."""
        try:
            value = json.loads(self.text(key))
        except (ValueError, RecursionError) as error:
            raise FileFormatError(self.path, f"has {key} that is not valid JSON. Get the file again.") from error
        if not isinstance(value, dict):
            raise FileFormatError(self.path, f"has {key} that is not a JSON object. Get the file again.")
        return {name: str(item) for name, item in value.items()}
