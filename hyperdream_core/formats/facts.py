"""A file's metadata, checked entry by entry: it comes from strangers, as texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..bases import BASES, get_base
from ..errors import BaseMismatchError, ConfigError, FileFormatError, quoted
from ..json_text import JsonTextError, parse_json
from ..ops.bands import Band, check_apart

_LONGEST_WORDS = 300
_MOST_BANDS = 64


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
                self.path, f"has {key} {quoted(value)}, but {', '.join(known)} are known here. Update HyperDream."
            )
        return value

    def family(self, key: str, wanted: str | None) -> str:
        """The entry as a family of bases: the one that is wanted, or any known one if that is None."""
        found = self.one_of(key, BASES)
        if wanted is not None and found != wanted:
            raise BaseMismatchError(
                f"{self.path.name}: was made for {found!r}, but the base is {wanted!r}. Load a checkpoint of "
                f"{get_base(found).title}."
            )
        return found

    def whole_number(self, key: str) -> int:
        """The entry as a number in 1..99999."""
        value = self.text(key)
        if not re.fullmatch("[1-9][0-9]{0,4}", value):
            raise FileFormatError(
                self.path,
                f"has {key} {quoted(value)}, but a whole number of 1 or more is expected. Get the file again.",
            )
        return int(value)

    def words(self, key: str) -> str:
        """The entry as words for prompts: on one line, of bearable length."""
        value = self.text(key)
        if len(value) > _LONGEST_WORDS or not value.isprintable():
            raise FileFormatError(
                self.path,
                f"has {key} {quoted(value)}, but at most {_LONGEST_WORDS} printable characters on one line are "
                "expected. Get the file again.",
            )
        return value

    def check_digest(self, key: str, expected: str, thing: str) -> None:
        """Refuse the file unless its digest of `thing` is the one of this release."""
        found = self.text(key)
        if found != expected:
            raise BaseMismatchError(
                f"{self.path.name}: was made with another {thing} (digest {quoted(found[:12])[1:-1]}) than this "
                "release draws "
                f"({expected[:12]}), so its numbers would mean noise. Use the HyperDream release that made it, and "
                "export a LoRA there."
            )

    def facts(self, key: str) -> dict[str, str]:
        """The entry as a JSON object of texts."""
        try:
            value = parse_json(self.text(key))
        except JsonTextError as error:
            raise FileFormatError(self.path, f"has {key} in its metadata that {error}. Get the file again.") from error
        return {name: str(item) for name, item in value.items()}

    def bands(self, key: str) -> tuple[Band, ...]:
        """The entry as noise bands, a JSON list of half-open [start, end) that lie apart and rise."""
        text = self.text(key)
        try:
            bands = tuple((float(start), float(end)) for start, end in parse_json(text, list, finite=False))
            check_apart(bands)
        except ConfigError as error:
            raise FileFormatError(self.path, f"has bands {quoted(text)}: {error}. Get the file again.") from error
        except (JsonTextError, TypeError, ValueError, OverflowError):
            bands = ()
        if not 1 <= len(bands) <= _MOST_BANDS:
            raise FileFormatError(
                self.path,
                f"has {key} {quoted(text)}, but a list of 1 to {_MOST_BANDS} pairs [start, end] is expected. Get the "
                "file again.",
            )
        return bands
