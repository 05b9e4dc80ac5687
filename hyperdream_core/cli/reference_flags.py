"""The flags of every command that takes photographs of a subject: which pictures, and how their faces are found."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .console import Console
from .flags import add_config_flags, config_from_flags, given_values, place

if TYPE_CHECKING:
    from ..faces.prepare import PrepareConfig
    from ..faces.prepared_faces import Faces
    from ..faces.recognizer import Recognizer
    from ..pictures.files import Picture

# What people are called in prompts; a face detector has nothing to say about anything else.
_PEOPLE = {"face", "person", "man", "woman", "boy", "girl", "child", "baby"}
_CROP = 512
"""Side of the crops that are kept, px; other sizes are cut from the photographs when they are asked for."""


def add_reference_flags(parser: argparse.ArgumentParser) -> None:
    """The pictures of the subject, and how their faces are found."""
    from ..faces.prepare import PrepareConfig

    parser.add_argument("pictures", metavar="PICTURE", nargs="+", type=place, help="photographs of one subject")
    group = parser.add_argument_group("faces")
    add_config_flags(group, PrepareConfig)
    group.add_argument(
        "--recognizer",
        type=place,
        metavar="FILE",
        help="ArcFace, AuraFace or SFace in ONNX, or a folder of insightface's packs, to measure likeness with",
    )


@dataclass(frozen=True, kw_only=True)
class References:
    """What these flags ask for."""

    paths: tuple[Path, ...]
    config: PrepareConfig
    names_detector: bool
    """a detector was named"""
    recognizer_path: Path | None

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> References:
        """Of a command line."""
        from ..faces.prepare import PrepareConfig

        return cls(
            paths=tuple(arguments.pictures),
            config=config_from_flags(PrepareConfig, arguments),
            names_detector="detector" in given_values(PrepareConfig, arguments),
            recognizer_path=arguments.recognizer,
        )

    def read(self) -> list[Picture]:
        """The pictures, read before anything that takes longer."""
        from ..pictures.files import read_picture

        return [read_picture(path, self.config.background) for path in self.paths]

    def prepare(
        self, console: Console, pictures: list[Picture], family: str, class_noun: str, size: int = _CROP
    ) -> Faces:
        """The subject's faces for a base's family, and everything to say about them.

        Raises:
            ConfigError: no such size.
        """
        from ..errors import ConfigError
        from ..faces.prepare import prepare_references
        from ..faces.prepared_faces import Faces

        if size % 8 or not 32 <= size <= 4096:
            raise ConfigError(f"size must be a multiple of 8 from 32 to 4096 px, got {size}")
        config, notes = self.config_for(family, class_noun)
        prepared = prepare_references(pictures, size, config, recognizer=self.recognizer(family))
        console.note([*notes, *prepared.notes])
        return Faces(prepared, config.margin)

    def recognizer(self, family: str = "") -> Recognizer | None:
        """The recogniser that was named, or the family's own."""
        from ..faces.recognizer import OnnxRecognizer
        from ..miniature.companions import companions_of

        if self.recognizer_path is not None:
            return OnnxRecognizer([self.recognizer_path])
        return companions_of(family).own_recognizer()

    def config_for(self, family: str, class_noun: str) -> tuple[PrepareConfig, list[str]]:
        """The settings, with the detector that suits the base where none was named, and why."""
        from ..miniature.companions import companions_of

        if self.names_detector:
            return self.config, []
        if companions_of(family).whole_pictures:
            return replace(self.config, detector="already-cropped"), []
        if class_noun.lower() not in _PEOPLE:
            note = f"the subject is a {class_noun!r}, so no face is looked for; --detector auto looks for one"
            return replace(self.config, detector="already-cropped"), [note]
        return self.config, []
