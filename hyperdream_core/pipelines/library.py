"""The library of saved identities: what lies in the identity folders, and what may be done with it.

Knows no host: folders come in, checked values and sentences go out. An identity is addressed by its name in the
listing, never by a path, so nothing outside the folders can be named.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..bases import get_base
from ..errors import ConfigError, FileFormatError, HyperDreamError, OutputError, printable
from ..formats.container import read_tensors, write_tensors
from ..formats.file_names import SUFFIX, check_name
from ..formats.identity_file import read_identity
from ..whole_file import as_text

PREVIEW_SUFFIX = ".png"
PREDICTORS = "predictors"
"""Folder of the predictors among the identities' models; they are no identities."""
LONGEST_NOTES = 2000
STRENGTHS = -2.0, 2.0

# An SDXL identity of rank 16 takes under 8 MB; reading a checkpoint that was put here by mistake would take minutes.
_LARGEST_FILE = 64_000_000
_LARGEST_PREVIEW = 32_000_000
_PNG_START = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of the library, as the sidebar shows it."""

    name: str
    """as in the node's list of files, subfolder included"""
    title: str
    """file name without its ending"""
    bytes: int
    modified: float
    """seconds since 1970"""
    preview: float | None = None
    """when the picture beside it was made, seconds since 1970; None without one"""
    family: str = ""
    family_title: str = ""
    identifier: str = ""
    class_noun: str = ""
    rank: int = 0
    strength: float = 1.0
    """for a node made by dragging"""
    notes: str = ""
    """the first `LONGEST_NOTES` characters"""
    notes_length: int = 0
    """characters of the notes in the file"""
    problem: str = ""
    """why it cannot be read, one sentence; empty if it can"""


class Library:
    """The identities in some folders; the first folder wins where a name is there twice, as in the host's lists."""

    def __init__(self, folders: Callable[[], Sequence[Path]]) -> None:
        self._folders = folders
        self._known: dict[Path, tuple[tuple[int, int], Entry]] = {}
        self._lock = threading.Lock()

    def entries(self) -> list[Entry]:
        """Every identity file, newest first; one that cannot be read says why."""
        found = []
        for name, path in self._files().items():
            try:
                found.append(self._entry(name, path))
            except OSError:
                # Deleted or renamed by somebody else since the folder was read.
                continue
        return sorted(found, key=lambda entry: (-entry.modified, entry.name))

    def preview(self, name: str) -> Path | None:
        """The picture beside an identity; None without one.

        Raises:
            ConfigError: no such identity.
        """
        path = self.find(name).with_suffix(PREVIEW_SUFFIX)
        return path if _is_picture(path) else None

    def rename(self, name: str, new_name: str) -> str:
        """Rename an identity and its picture within their folder; returns the new name in the listing.

        Raises:
            ConfigError: no such identity, or the new name is taken or cannot be a file's.
            OutputError: the folder cannot be changed.
        """
        with self._lock:
            path = self.find(name)
            new = path.with_name(check_name(new_name) + SUFFIX)
            if new == path:
                return name
            moves = [(path, new)]
            if _is_picture(path.with_suffix(PREVIEW_SUFFIX)):
                moves.append((path.with_suffix(PREVIEW_SUFFIX), new.with_suffix(PREVIEW_SUFFIX)))
            for source, target in moves:
                if os.path.lexists(target) and not _is_same_file(source, target):
                    raise ConfigError(
                        f"{target.name!r} already exists in that folder, and nothing was renamed. Choose another name."
                    )
            done: list[tuple[Path, Path]] = []
            try:
                for source, target in moves:
                    os.rename(source, target)
                    done.append((source, target))
            except OSError as error:
                for source, target in done:
                    os.rename(target, source)
                raise _unchangeable(path, "renamed", error) from error
        return str(Path(name).with_name(new.name))

    def delete(self, name: str) -> None:
        """Delete an identity and its picture.

        Raises:
            ConfigError: no such identity.
            OutputError: the folder cannot be changed.
        """
        with self._lock:
            path = self.find(name)
            picture = path.with_suffix(PREVIEW_SUFFIX)
            try:
                path.unlink()
                if _is_picture(picture):
                    picture.unlink()
            except OSError as error:
                raise _unchangeable(path, "deleted", error) from error

    def annotate(self, name: str, notes: str | None = None, strength: float | None = None) -> None:
        """Write notes and strength into an identity's metadata; None leaves one as it is.

        Notes that are longer than an entry shows are not replaced: whoever edits them has not seen all of them.

        Raises:
            ConfigError: no such identity, notes too long here or in the file, or strength out of range.
            FileFormatError: the file is no identity that can be read.
            OutputError: the folder cannot be written.
        """
        if notes is not None and len(notes) > LONGEST_NOTES:
            raise ConfigError(
                f"the notes have {len(notes)} characters, expected at most {LONGEST_NOTES}. Shorten them."
            )
        if notes is not None and as_text(notes) != notes:
            raise ConfigError("the notes hold half of a character, which no file can keep. Type them again.")
        low, high = STRENGTHS
        if strength is not None and not low <= strength <= high:
            raise ConfigError(f"strength must lie in {low:g}..{high:g}, got {strength:g}. Choose one within.")
        with self._lock:
            path = self.find(name)
            facts = dict(_read(path).made_by)
            if notes is not None:
                if len(facts.get("notes", "")) > LONGEST_NOTES:
                    raise ConfigError(
                        f"the notes in the file have {len(facts['notes'])} characters, of which the library shows the "
                        f"first {LONGEST_NOTES}, so they are left as they are. Save the identity anew with other notes."
                    )
                facts["notes"] = notes
            if strength is not None:
                facts["strength"] = f"{strength:g}"
            metadata, tensors = read_tensors(path)
            made_by = json.dumps(facts, sort_keys=True, ensure_ascii=False)
            write_tensors(path, {**metadata, "made_by": made_by}, tensors)

    def find(self, name: str) -> Path:
        """The file of that name in the listing.

        Raises:
            ConfigError: there is none.
        """
        path = self._files().get(name)
        if path is None:
            raise ConfigError(
                f"there is no identity {name!r} in the library; it may have been renamed or deleted. Refresh the list."
            )
        return path

    def _files(self) -> dict[str, Path]:
        files: dict[str, Path] = {}
        for folder in self._folders():
            for path in _identity_files(folder):
                files.setdefault(os.path.relpath(path, folder), path)
        return files

    def _entry(self, name: str, path: Path) -> Entry:
        state = path.stat()
        stamp = state.st_mtime_ns, state.st_size
        known = self._known.get(path)
        if known is None or known[0] != stamp:
            facts: dict[str, Any] = {"name": name, "title": path.stem}
            facts |= {"bytes": state.st_size, "modified": state.st_mtime}
            known = stamp, Entry(**facts, **_facts(path))
            self._known[path] = known
        picture = path.with_suffix(PREVIEW_SUFFIX)
        made = picture.stat().st_mtime if _is_picture(picture) else None
        return Entry(**{**asdict(known[1]), "name": name, "preview": made})


def _identity_files(folder: Path) -> Iterator[Path]:
    """Files that may be identities, in order; a folder that cannot be read is empty, hidden ones are left alone."""
    seen: set[str] = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:  # a link back to a folder above
            folders.clear()
            continue
        seen.add(real)
        is_top = Path(here) == Path(folder)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not (is_top and f == PREDICTORS))
        for name in sorted(names):
            path = Path(here) / name
            if name.lower().endswith(SUFFIX) and not name.startswith(".") and path.is_file():
                yield path


def _facts(path: Path) -> dict[str, Any]:
    """What a file says of itself, or its problem; whatever a stranger put into the folder, the listing goes on."""
    try:
        identity = _read(path)
    except FileFormatError as error:
        return {"problem": printable(error.problem, 500)}
    except HyperDreamError as error:
        return {"problem": str(error)}
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        return {"problem": f"is damaged ({type(error).__name__}); get it again."}
    notes = identity.made_by.get("notes", "")
    return {
        "family": identity.family,
        "family_title": get_base(identity.family).title,
        "identifier": identity.identifier,
        "class_noun": identity.class_noun,
        "rank": identity.rank,
        "strength": _strength(identity.made_by.get("strength", "")),
        "notes": notes[:LONGEST_NOTES],
        "notes_length": len(notes),
    }


def _read(path: Path) -> Any:
    size = path.stat().st_size
    if size > _LARGEST_FILE:
        raise FileFormatError(
            path, f"has {size / 1e6:.0f} MB, but an identity has under {_LARGEST_FILE / 1e6:.0f} MB. Move it elsewhere."
        )
    return read_identity(path)


def _strength(text: str) -> float:
    """A strength from a stranger's metadata; 1, as trained, if it says nothing of use."""
    low, high = STRENGTHS
    if re.fullmatch(r"-?[0-9]{1,2}(\.[0-9]{1,6})?", text) and low <= float(text) <= high:
        return float(text)
    return 1.0


def _is_picture(path: Path) -> bool:
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_PREVIEW:
            return False
        with open(path, "rb") as file:
            return file.read(len(_PNG_START)) == _PNG_START
    except OSError:
        return False


def _is_same_file(source: Path, target: Path) -> bool:
    """Whether both names are one file, as 'mara' and 'Mara' are where the case of letters does not count."""
    return source.name.lower() == target.name.lower() and os.path.samefile(source, target)


def _unchangeable(path: Path, done: str, error: OSError) -> OutputError:
    return OutputError(
        f"{path.name} could not be {done} ({error.strerror or error}). Check that its folder can be written and that "
        "no other program has the file open."
    )
