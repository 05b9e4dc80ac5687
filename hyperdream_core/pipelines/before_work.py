"""What is checked before the work and not after it, in every host: places, names, free space, texts and prompts.

Each check leaves everything as it is, so that a refused job has changed nothing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..bases import BaseFamily
from ..errors import ConfigError, OutputError, PromptError, quoted
from ..whole_file import check_place
from .prompts import names_subject

_SPARE = 2_000_000
"""bytes that are always wanted besides: reports, and what the file system takes for itself"""
_LONGEST_TEXT = 5_000
"""characters of a prompt or caption; encoders read a few hundred, and tokenizers take their time for the rest"""


def check_outputs(outputs: Iterable[Path], inputs: Iterable[Path] = (), room: int = 0) -> None:
    """Refuse results that would replace what they are made of, or that cannot be written where they belong.

    Args:
        outputs: files that will be written.
        inputs: files and folders that the job reads; a file in such a folder is one of them.
        room: bytes that will be written, about.

    Raises:
        OutputError: an output is an input by whatever name, two outputs are one file, something else than a file is
            there, the name cannot be a file's, its folder cannot be made or written, or the disk is too full.
    """
    inputs, named = list(inputs), dict[str, Path]()
    for path in outputs:
        check_output(path, inputs)
        # Two names that differ in the case of letters, or in how an accent is written, are one file on some systems.
        name = unicodedata.normalize("NFC", os.path.realpath(path)).casefold()
        if name in named:
            raise OutputError(f"{path}: two results would be this one file, as {named[name]} is it too. Name another.")
        named[name] = path
    for folder in {path.parent: None for path in named.values()}:
        check_folder(folder, room)


def check_output(path: Path, inputs: Iterable[Path]) -> None:
    """Refuse one result that is among the inputs, by whatever name, or is no regular file.

    Raises:
        OutputError: as `check_outputs`.
    """
    check_place(path)
    if not path.exists():
        return
    for one in inputs:
        with suppress(OSError, ValueError):
            if os.path.samefile(path, one):
                raise OutputError(f"{path}: is what is read here ({one}), and would be replaced. Choose another name.")
            if one.is_dir() and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(one)):
                raise OutputError(
                    f"{path}: is a file of {one}, which is read here, and would be replaced. Choose another name."
                )


def check_folder(folder: Path, room: int = 0) -> None:
    """See that files can be written to a folder, which need not be there yet, and that `room` bytes are free.

    Raises:
        OutputError: they cannot, or are not.
    """
    try:
        above = next((one for one in (folder, *folder.parents) if os.path.lexists(one)), Path())
        for part in folder.relative_to(above).parts:
            # Folders that will be made: a name that is too long is refused wherever it is looked for.
            with suppress(FileNotFoundError):
                os.lstat(above / part)
        with tempfile.TemporaryFile(dir=above) as file:
            file.write(b"1")
            file.flush()
        disk = shutil.disk_usage(above)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"{folder}: cannot be written ({reason}), but the results belong there; choose another folder, or free "
            "some space"
        ) from error
    # Some file systems do not tell.
    if disk.total and disk.free < room + _SPARE:
        raise OutputError(
            f"{folder}: has {disk.free / 1e6:,.1f} MB free, but the results may take {(room + _SPARE) / 1e6:,.1f} MB; "
            "free some space, or choose another folder"
        )


def bytes_of_identity(family: BaseFamily, target_set: str, rank: int, down_dim: int = 50, up_dim: int = 100) -> int:
    """Bytes of an identity with the LoRA that is exported of it, at the most: in 32 bits."""
    layers = family.layers(target_set)
    return 4 * rank * sum(
        layer.in_features + layer.out_features + min(down_dim, layer.in_features) + min(up_dim, layer.out_features)
        for layer in layers
    )  # fmt: skip


def bytes_of_pictures(count: int, side: int) -> int:
    """Bytes of so many pictures, at the most: PNG files of noise."""
    return 3 * side * side * count


def check_texts(**texts: str | Iterable[str]) -> None:
    """Refuse texts that no file can hold or no encoder can read, by the name of their setting.

    Raises:
        ConfigError: a text is too long, or holds half a character, as names in another encoding do.
    """
    for name, given in texts.items():
        for text in [given] if isinstance(given, str) else given:
            if len(text) > _LONGEST_TEXT:
                raise ConfigError(
                    f"{name} has {len(text):,} characters, expected {_LONGEST_TEXT:,} or fewer; shorten it"
                )
            odd = next((one for one in text if one == "\0" or "\ud800" <= one <= "\udfff"), None)
            if odd is not None:
                raise ConfigError(
                    f"{name} {text[:80]!r} holds {odd!r}, which is no character, as of a text in another encoding than "
                    "UTF-8; type it anew"
                )


def check_words(identifier: str, class_noun: str) -> None:
    """Refuse words for a subject that no prompt can name it by.

    Raises:
        ConfigError: one is empty, is more than a few words, or is no text.
    """
    check_texts(identifier=identifier, class_noun=class_noun)
    for name, word in (("identifier", identifier), ("class_noun", class_noun)):
        if not word.strip() or len(word) > 100 or not word.isprintable():
            raise ConfigError(f"{name} must be a word of 1 to 100 characters, got {word[:120]!r}; write one, as 'sks'")


def check_prompts(base: Any, prompts: Sequence[str], identifier: str = "") -> list[str]:
    """What a base's text encoder will not see of prompts, one sentence for each that is cut.

    Args:
        base: one whose encoder cuts prompts off tells by `cut_off(prompt)` what it leaves; others read all.
        prompts: as they will be encoded.
        identifier: of the subject, if there is one.

    Raises:
        PromptError: the identifier itself would not be seen, so that anybody would be drawn.
    """
    notes: list[str] = []
    for prompt in dict.fromkeys(prompts):
        left = base.cut_off(prompt) if hasattr(base, "cut_off") else ""
        if not left:
            continue
        seen = prompt[: len(prompt) - len(left)]
        if identifier and names_subject(prompt, identifier) and not names_subject(seen, identifier):
            raise PromptError(
                f"the prompt {quoted(prompt, 120)} is too long: {identifier!r} is beyond the 77 tokens that the text "
                "encoder reads, so somebody else would be drawn; move it to the front, or shorten the prompt"
            )
        notes.append(
            f"the prompt {quoted(prompt, 120)} is longer than the 77 tokens that the text encoder reads, and this is "
            f"left out: {quoted(left.strip(), 120)}"
        )
    return notes
