"""The verbs of the library in their shortest form, for programs that call it: prepare, predict, polish, draw, save.

Each is a thin layer over the function that does the work; whoever needs more of it calls that one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from .errors import ConfigError, HyperDreamError
from .faces.prepare import PrepareConfig, prepare_references
from .faces.prepared_faces import Faces
from .formats.identity_file import read_identity, write_identity
from .identity import Identity
from .miniature.companions import companions_of
from .pictures.files import Picture, read_picture, save_image
from .pipelines import export as exporting
from .pipelines.base import Base
from .pipelines.before_work import check_prompts
from .pipelines.diffusers.loading import load_base
from .pipelines.drawing import draw as drawing
from .pipelines.drawing.draw import DrawConfig
from .pipelines.export import ExportConfig
from .pipelines.polishing import polish as polishing
from .pipelines.polishing.polish_config import PolishConfig
from .pipelines.predictors.predict import PredictConfig
from .pipelines.predictors.predictor import Predictor, open_predictor
from .pipelines.prompts import insert_identifier

__all__ = [
    "DrawConfig",
    "ExportConfig",
    "HyperDreamError",
    "PolishConfig",
    "PredictConfig",
    "PrepareConfig",
    "draw",
    "export",
    "load_base",
    "open_predictor",
    "polish",
    "predict",
    "prepare",
    "read_identity",
    "save",
]

_CROP = 512
"""Side of the crops that are kept, px; other sizes are cut from the pictures when they are asked for."""


def prepare(
    pictures: str | Path | Picture | Sequence[str | Path | Picture],
    base: Base | None = None,
    config: PrepareConfig | None = None,
) -> Faces:
    """Find, choose, align and judge the face in each picture of one subject.

    Args:
        pictures: files of one subject, or pictures that were read already; one or several.
        base: they are meant for; the miniature's pictures are taken whole, as they are crops already.
        config: settings; left out, they suit the base.

    Returns:
        The faces, to be cut out at any size; `faces.prepared.notes` says what speaks against them.

    Raises:
        ReferenceImageError: no picture, an unreadable one, or one without a face.
        MissingDependencyError, FileFormatError: the detector asked for cannot be had.
    """
    if config is None:
        is_whole = base is not None and companions_of(base.family.name).whole_pictures
        config = PrepareConfig(detector="already-cropped") if is_whole else PrepareConfig()
    several = [pictures] if isinstance(pictures, (str, Path, Picture)) else list(pictures)
    read = [one if isinstance(one, Picture) else read_picture(one, config.background) for one in several]
    return Faces(prepare_references(read, _CROP, config), config.margin)


def predict(predictor: Predictor, faces: Faces, config: PredictConfig | None = None) -> Identity:
    """The identity that a predictor sees in prepared faces, in one pass and without training."""
    return predictor.predict(faces, config)[0]


def polish(base: Base, faces: Faces, start: Identity | None = None, config: PolishConfig | None = None) -> Identity:
    """A prediction sharpened on its faces, or an identity made of them from scratch; the base stays as it is.

    What the pictures show besides their subject is read off where all the words that the base knows are on record.

    Args:
        base: to polish for.
        faces: of the subject.
        start: prediction to start from.
        config: settings; left out, 40 steps after a prediction and 200 from scratch.

    Raises:
        BaseMismatchError: the prediction is for another base family.
        ConfigError: training diverged.
    """
    size = base.family.picture_size
    captions = companions_of(base.family.name).read_captions(base, faces.at(size))
    return polishing.polish(base, faces.at(size), start, config, captions=captions).identity


def draw(
    base: Base, prompts: str | Sequence[str], identity: Identity | None = None, config: DrawConfig | None = None
) -> Tensor:
    """Pictures (b, 3, h, w) in 0..1, one for each prompt, on the CPU.

    Args:
        base: to draw with.
        prompts: `[V]` in them stands for the subject.
        identity: of the subject; None draws with the base alone.
        config: settings.

    Raises:
        PromptError: a prompt does not name the subject, or only beyond what the text encoder reads.
        BaseMismatchError: the identity is for another base family.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if identity is not None:
        texts = [insert_identifier(text, identity.identifier, identity.class_noun) for text in texts]
        check_prompts(base, texts, identity.identifier)
    return drawing.draw(base, texts, identity, config).cpu()


def save(what: Identity | Tensor, path: str | Path) -> Path:
    """Write an identity to a .safetensors file, or one picture to a PNG file; whole or not at all.

    Args:
        what: an identity, or a picture (3, h, w) or (1, 3, h, w) in 0..1.
        path: of the file, whose folder exists.

    Raises:
        ConfigError: several pictures at once.
        OutputError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    if isinstance(what, Identity):
        write_identity(path, what)
        return path
    if what.dim() == 4 and len(what) != 1:
        raise ConfigError(f"{path}: holds one picture, got {len(what)}; save them one by one")
    return save_image(path, what[0] if what.dim() == 4 else what)


def export(identity: Identity, path: str | Path, config: ExportConfig | None = None) -> Path:
    """Write the identity as a LoRA for ComfyUI, A1111, Forge and diffusers; exact but for the numbers' rounding.

    Raises:
        OutputError: the folder cannot be written or the disk is full.
    """
    return exporting.export_lora(identity, path, config)
