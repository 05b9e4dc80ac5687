"""Every reader of files meets altered bytes, and either gives a value or raises one of our errors.

A new reader is added to `READERS`; `test_every_reader_is_here` finds those that were forgotten by their names.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from hyperdream_core.errors import HyperDreamError
from hyperdream_core.formats.container import read_container, read_names, read_tensors
from hyperdream_core.formats.identity_file import inspect_identity, read_identity, write_identity
from hyperdream_core.formats.lora_file import read_lora, read_lora_file
from hyperdream_core.formats.predictor_file import read_hypernetwork
from hyperdream_core.models.hypernetwork import Hypernetwork, HypernetworkConfig
from hyperdream_core.pictures.files import read_image, read_picture, read_references
from hyperdream_core.pipelines.diffusers.loading import load_base
from hyperdream_core.pipelines.export import export_lora
from hyperdream_core.pipelines.library import Library
from hyperdream_core.pipelines.predictors.hypernetwork_predictor import read_hypernetwork_predictor, save_hypernetwork
from hyperdream_core.pipelines.predictors.predictor import open_predictor
from tests.identities import make_identity

ROOT = Path(__file__).resolve().parents[2]
FLIPS = 60
"""Altered copies that each reader sees: about a second's worth."""

Write = Callable[[Path], object]
Read = Callable[[Path], object]


@dataclass(frozen=True)
class Reader:
    """One function that reads files, and how a good file for it is made."""

    ending: str
    write: Write
    read: Read


def _identity(path: Path) -> None:
    write_identity(path, make_identity("miniature", scale=0.1))


def _identity_on_end(path: Path) -> None:
    write_identity(path, make_identity("miniature", rank=2, scale=0.1), torch.float32)


def _lora(path: Path) -> None:
    export_lora(make_identity("miniature", scale=0.1), path)


def _predictor(path: Path) -> None:
    encoder = {"kind": "conv", "channels": [8, 8, 8, 8], "blocks": [1, 1, 1], "width": 6, "image_size": 32}
    shape = {"down_dim": 5, "up_dim": 7, "width": 12, "heads": 3, "decoder_layers": 1}
    config = HypernetworkConfig(family="miniature", image_encoder=encoder, **shape)  # type: ignore[arg-type]
    save_hypernetwork(path, Hypernetwork(config))


def _picture(path: Path) -> None:
    from PIL import Image

    colours = torch.randint(0, 255, (24, 32, 3), generator=torch.Generator().manual_seed(1))
    Image.fromarray(colours.byte().numpy()).save(path)


def _checkpoint(path: Path) -> None:
    """A bare beginning of a checkpoint: enough to be opened, looked into and refused."""
    from safetensors.torch import save_file

    names = ("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight")
    save_file({name: torch.zeros(4, 4, 3, 3) for name in names}, path)


def _listed(path: Path) -> object:
    return Library(lambda: [path.parent]).entries()


READERS = {
    "container.read_container": Reader(
        ".safetensors", _identity, lambda path: read_container(path, "hyperdream-identity", 1)
    ),
    "container.read_tensors": Reader(".safetensors", _identity_on_end, read_tensors),
    "identity_file.read_identity": Reader(".safetensors", _identity, read_identity),
    "identity_file.inspect_identity": Reader(".safetensors", _identity_on_end, inspect_identity),
    "lora_file.read_lora_file": Reader(".safetensors", _lora, read_lora_file),
    "lora_file.read_lora": Reader(".safetensors", _lora, read_lora),
    "predictor_file.read_hypernetwork": Reader(".safetensors", _predictor, read_hypernetwork),
    "hypernetwork_predictor.read_hypernetwork_predictor": Reader(
        ".safetensors", _predictor, read_hypernetwork_predictor
    ),
    "container.read_names": Reader(".safetensors", _predictor, read_names),
    "predictor.open_predictor": Reader(".safetensors", _predictor, open_predictor),
    "loading.load_base": Reader(".safetensors", _checkpoint, load_base),
    "library.Library": Reader(".safetensors", _identity, _listed),
    "files.read_picture": Reader(".png", _picture, read_picture),
    "files.read_picture of a JPEG": Reader(".jpg", _picture, read_picture),
    "files.read_picture of a TIFF": Reader(".tif", _picture, read_picture),
    "files.read_picture of a WebP": Reader(".webp", _picture, read_picture),
    "files.read_image": Reader(".bmp", _picture, read_image),
    "files.read_references": Reader(".png", _picture, lambda path: read_references([path], 16)),
}


def altered(content: bytes, chance: random.Random) -> bytes:
    """The content cut off, with bytes changed, or with a piece of it moved; most of it where headers are."""
    kind = chance.randrange(4)
    if kind == 0:
        return content[: chance.randrange(len(content))]
    changed = bytearray(content)
    head = min(len(content), 4096)
    if kind == 1:
        start, length = chance.randrange(head), chance.randrange(1, 64)
        return bytes(changed[:start] + changed[start + length :])
    for _ in range(chance.choice((1, 1, 3, 20))):
        place = chance.randrange(head if chance.random() < 0.8 else len(content))
        changed[place] = chance.randrange(256) if kind == 2 else changed[place] ^ (1 << chance.randrange(8))
    return bytes(changed)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("ignore")  # what decoders say of damaged pictures is theirs
def test_altered_bytes_end_in_a_value_or_in_one_of_our_errors(name: str, tmp_path: Path) -> None:
    reader, chance = READERS[name], random.Random(name)
    good = tmp_path / f"good{reader.ending}"
    reader.write(good)
    content, refused = good.read_bytes(), 0
    good.unlink()
    place = tmp_path / f"altered{reader.ending}"
    for number in range(FLIPS):
        place.write_bytes(altered(content, chance))
        try:
            reader.read(place)
        except HyperDreamError as error:
            refused += 1
            assert place.stem in str(error) and str(error).strip(), f"{name}, input {number}: {error}"
        except Exception as error:
            raise AssertionError(f"{name}, input {number}: {type(error).__name__}: {error}") from error
    tolerant = ("inspect", "Library", "read_names")
    assert refused > FLIPS // 5 or name.partition(".")[2].startswith(tolerant), f"{refused} of {FLIPS} were refused"


def test_every_reader_is_here() -> None:
    """Public functions of formats and pictures that are called read_... or inspect_... and take a path."""
    known = {name.partition(" ")[0] for name in READERS}
    for room in ("formats", "pictures"):
        for file in sorted((ROOT / "hyperdream_core" / room).rglob("*.py")):
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef) and node.name.startswith(("read_", "inspect_")):
                    assert f"{file.stem}.{node.name}" in known, f"{file.stem}.{node.name} is not thrown at"
