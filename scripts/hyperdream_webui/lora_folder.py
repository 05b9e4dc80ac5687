"""The identities of this host: files that `<lora:...>` reads, with everything beside them that its Lora page shows.

An identity is kept as `NAME-3f2a91.safetensors`, the last part being a digest of its numbers: the hosts keep LoRAs in
memory by their file's name, and a name that comes again with other contents would draw the old person. In the folder
`.lora` beside it lies an ordinary LoRA `NAME-3f2a91-lora.safetensors`, which works without this extension; the Lora
page shows such a folder only to those who search, so that nobody is there twice. Each of both has a picture and the
trigger words. The miniature's identities are of no use to the host's checkpoints and lie elsewhere, without LoRA.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from PIL import Image

from hyperdream_core.bases import get_base
from hyperdream_core.errors import ConfigError, OutputError
from hyperdream_core.formats.file_names import SUFFIX, check_name
from hyperdream_core.formats.identity_file import read_identity, write_identity
from hyperdream_core.identity import Identity, blended
from hyperdream_core.pictures.files import save_image
from hyperdream_core.pipelines.export import HOST_FAMILIES, export_lora, write_lora_words
from hyperdream_core.pipelines.library import PREVIEW_SUFFIX, Entry, Library
from hyperdream_core.whole_file import write_whole

STOCK = "-lora"
STOCK_FOLDER = ".lora"
_DIGEST = re.compile(r"-[0-9a-f]{6}$")


class LoraFolder:
    """The library, and what belongs to each of its files.

    Args:
        lora_folder: where `<lora:...>` finds identities.
        own_folder: for those that the host cannot draw with.
    """

    def __init__(self, lora_folder: Path, own_folder: Path) -> None:
        self.lora_folder, self.own_folder = lora_folder, own_folder
        self.library = Library(lambda: [lora_folder, own_folder])

    def entries(self) -> list[Entry]:
        """Every identity, newest first; the ordinary LoRAs beside them are none."""
        return [entry for entry in self.library.entries() if not entry.title.endswith(STOCK)]

    def read(self, name: str) -> Identity:
        """The identity of that name in the listing."""
        return read_identity(self.library.find(name))

    def is_for_host(self, name: str) -> bool:
        """Whether `<lora:...>` can draw with it."""
        return self.read(name).family in HOST_FAMILIES

    def folder_for(self, family: str) -> Path:
        """Where identities of a family are kept."""
        return self.lora_folder if family in HOST_FAMILIES else self.own_folder

    def put(self, identity: Identity, name: str, picture: Image.Image | None = None) -> str:
        """Keep an identity under a name, with a picture if there is one; returns its name in the listing.

        Raises:
            ConfigError: the name cannot be a file's.
            OutputError: the folder cannot be written.
        """
        stem = f"{check_name(name)}-{digest(identity)}"
        folder = self.folder_for(identity.family)
        _make(folder)
        path = folder / f"{stem}{SUFFIX}"
        saved = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        # 16 bits in one tensor per layer: the layout that Automatic1111 reads.
        write_identity(path, replace(identity, made_by={**identity.made_by, "saved": saved}), layout="layers")
        self._companions(path)
        if picture is not None:
            self.show(path.name, picture)
        return path.name

    def show(self, name: str, picture: Image.Image) -> None:
        """Put a picture beside an identity and its LoRA."""
        for file in self._files(self.library.find(name)):
            save_image(file.with_suffix(PREVIEW_SUFFIX), picture)

    def rename(self, name: str, new_name: str) -> str:
        """Rename an identity and all beside it; returns the new name in the listing.

        Raises:
            ConfigError: no such identity, or the new name is taken or cannot be a file's.
            OutputError: the folder cannot be changed.
        """
        path = self.library.find(name)
        old = self._companion_files(path)
        plain = _DIGEST.sub("", check_name(new_name))
        renamed = self.library.rename(name, f"{plain}-{digest(read_identity(path))}")
        new = self.library.find(renamed)
        picture = new.with_suffix(PREVIEW_SUFFIX)
        if new != path:
            self._remove(old)
            self._companions(new)
            if picture.is_file() and stock(new).is_file():
                write_whole(stock(new).with_suffix(PREVIEW_SUFFIX), picture.read_bytes())
        return renamed

    def delete(self, name: str) -> None:
        """Delete an identity and all beside it.

        Raises:
            ConfigError: no such identity.
            OutputError: the folder cannot be changed.
        """
        companions = self._companion_files(self.library.find(name))
        self.library.delete(name)
        self._remove(companions)

    def blend(self, first: str, second: str, share: float, name: str) -> str:
        """Keep somebody between two people, `share` of the second; returns the new name in the listing.

        Raises:
            ConfigError: no such identity, or they are of two families.
        """
        check_name(name)
        one, other = self.read(first), self.read(second)
        if one.family != other.family:
            titles = " and for ".join(get_base(person.family).title for person in (one, other))
            raise ConfigError(
                f"{first} and {second} were made for {titles}, and nobody is between people of two families; choose "
                "another of the same family, or make one anew of its photographs"
            )
        return self.put(blended(one, other, share), name)

    def export(self, name: str) -> Path:
        """The ordinary LoRA of an identity, written anew."""
        path = self.library.find(name)
        _make(stock(path).parent)
        return export_lora(read_identity(path), stock(path))

    def prompt(self, name: str, strength: float = 1.0) -> str:
        """What to write into a prompt to draw this person."""
        identity = self.read(name)
        return f"<lora:{Path(name).stem}:{strength:g}> a {identity.identifier} {identity.class_noun}"

    def _files(self, path: Path) -> list[Path]:
        return [path, stock(path)] if stock(path).is_file() else [path]

    def _companions(self, path: Path) -> None:
        """Write the ordinary LoRA and the words that the Lora page puts into the prompt."""
        # Read back: the file's numbers are rounded to 16 bits, and both files shall draw the same picture.
        identity = read_identity(path)
        if identity.family not in HOST_FAMILIES:
            return
        _make(stock(path).parent)
        export_lora(identity, stock(path))
        for file in self._files(path):
            write_lora_words(file, identity)

    def _companion_files(self, path: Path) -> list[Path]:
        """What belongs to an identity, also where 0.1.0 put it."""
        loras = [stock(path), path.with_name(stock(path).name)]
        beside = [lora.with_suffix(suffix) for lora in loras for suffix in (".json", SUFFIX, PREVIEW_SUFFIX)]
        return [path.with_suffix(".json"), *beside]

    def _remove(self, files: list[Path]) -> None:
        for file in files:
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(
                    f"{file.name} could not be deleted ({error.strerror}); delete it by hand, it is of no more use"
                ) from error


def stock(path: Path) -> Path:
    """Where the ordinary LoRA of an identity's file lies."""
    return path.parent / STOCK_FOLDER / f"{path.stem}{STOCK}{SUFFIX}"


def digest(identity: Identity) -> str:
    """Six hexadecimal digits of an identity's numbers as they are stored, in 16 bits."""
    content = hashlib.sha256()
    for name in sorted(identity.coefficients):
        coefficients = identity.coefficients[name]
        for side in (coefficients.down, coefficients.up):
            content.update(side.detach().half().numpy().tobytes())
    return content.hexdigest()[:6]


def plain_title(entry: Entry) -> str:
    """An identity's name without the digest."""
    return _DIGEST.sub("", entry.title)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}); choose a folder you may write to") from error
