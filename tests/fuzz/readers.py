"""The registry of readers: every function that reads what strangers make, and how a good input for it is made.

A new reader gets a line in `READERS`, or one in `THROUGH` that says through which other reader it is thrown at;
`test_readers.py` finds by its name one that has neither.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from hyperdream_core.bases import get_base
from hyperdream_core.bundled import bundled_weights
from hyperdream_core.cli.commands.inspect import inspect_file
from hyperdream_core.config import config_from_json
from hyperdream_core.faces.face import Face
from hyperdream_core.faces.insightface_detector import InsightfaceDetector
from hyperdream_core.faces.onnx_models import open_model
from hyperdream_core.faces.recognizer import OnnxRecognizer
from hyperdream_core.formats.container import open_mapped, read_container, read_names, read_table, read_tensors
from hyperdream_core.formats.http_request import read_body
from hyperdream_core.formats.identity_file import inspect_identity, read_identity, write_identity
from hyperdream_core.formats.lora_file import read_lora, read_lora_file
from hyperdream_core.formats.predictor_file import read_hypernetwork
from hyperdream_core.formats.scales_file import read_scales, write_scales
from hyperdream_core.json_text import read_json
from hyperdream_core.miniature.trial.judges import load_judges
from hyperdream_core.miniature.trial.kept_rows import keep_row, kept_row
from hyperdream_core.models.hypernetwork import Hypernetwork, HypernetworkConfig
from hyperdream_core.pictures.files import read_image, read_picture, read_references
from hyperdream_core.pipelines.corpora.manifest import (
    MANIFEST,
    Manifest,
    PartRecord,
    ShardEntry,
    read_manifest,
    read_record,
    write_manifest,
    write_record,
)
from hyperdream_core.pipelines.diffusers.loading import load_base
from hyperdream_core.pipelines.export import export_lora
from hyperdream_core.pipelines.library import Library
from hyperdream_core.pipelines.polishing.polish_checkpoint import PolishCheckpoint, PolishRun
from hyperdream_core.pipelines.polishing.polish_config import PolishConfig
from hyperdream_core.pipelines.polishing.trainable_adapters import TrainableAdapters, without_effect
from hyperdream_core.pipelines.predictors.hypernetwork_predictor import read_hypernetwork_predictor, save_hypernetwork
from hyperdream_core.pipelines.predictors.predictor import open_predictor
from hyperdream_core.pipelines.scores import Interval, MethodScores
from hyperdream_core.pipelines.training.checkpoint import TrainingCheckpoint
from hyperdream_core.pipelines.training.training_log import TrainingLog
from tests.fuzz.good_bases import (
    checkpoint_altered,
    drawn_by,
    folder_altered,
    read_folder,
    write_checkpoint,
    write_checkpoint_of_a_flat_vae,
    write_folder,
)
from tests.fuzz.good_pictures import PICTURES, is_picture, picture_altered
from tests.fuzz.mutations import Mutation, flipped, header_altered, json_altered
from tests.identities import make_identity, make_scales

Write = Callable[[Path], object]
Read = Callable[[Path], object]


@dataclass(frozen=True)
class Reader:
    """One function that reads what strangers make."""

    ending: str
    write: Write
    """a good file"""
    read: Read
    alter: Mutation = flipped
    """makes a bad file of its bytes"""
    is_tolerant: bool = False
    """it reports on bad files, or takes them for absent, instead of refusing them"""
    names_the_file: bool = True
    may_be_nan: bool = False
    """its good values hold figures that were not measured"""
    sane: Callable[[object], bool] | None = None
    """what a value that comes back must be, besides finite"""
    share: float = 1.0
    """of the inputs that are thrown at each reader; less where one takes long or many are alike"""


def _identity(path: Path) -> None:
    write_identity(path, make_identity("miniature", scale=0.1))


def _identity_on_end(path: Path) -> None:
    write_identity(path, make_identity("miniature", rank=2, scale=0.1), torch.float32)


def _scales(path: Path) -> None:
    write_scales(path, make_scales("miniature", bands=((0.0, 0.25), (0.5, 1.0))))


def _lora(path: Path) -> None:
    export_lora(make_identity("miniature", scale=0.1), path)


def _predictor(path: Path) -> None:
    encoder = {"kind": "conv", "channels": [8, 8, 8, 8], "blocks": [1, 1, 1], "width": 6, "image_size": 32}
    shape = {"down_dim": 5, "up_dim": 7, "width": 12, "heads": 3, "decoder_layers": 1}
    config = HypernetworkConfig(family="miniature", image_encoder=encoder, **shape)  # type: ignore[arg-type]
    save_hypernetwork(path, Hypernetwork(config))


def _transformer_predictor(path: Path) -> None:
    model = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
             "image_size": 32, "patch_size": 16}  # fmt: skip
    encoder = {"kind": "vit", "model_type": "vit", "model": model}
    shape = {"down_dim": 5, "up_dim": 7, "width": 12, "heads": 3, "decoder_layers": 1}
    config = HypernetworkConfig(family="miniature", image_encoder=encoder, **shape)  # type: ignore[arg-type]
    save_hypernetwork(path, Hypernetwork(config))


def _manifest(path: Path) -> None:
    source = {"kind": "photographs", "people": 3}
    write_manifest(path.parent, Manifest(size=64, plan="0" * 64, shards=2, sources=(source,)))
    shutil.move(path.parent / MANIFEST, path)


def _read_manifest(path: Path) -> object:
    shutil.copy(path, path.parent / MANIFEST)
    return read_manifest(path.parent)


def _record(path: Path) -> None:
    entry = ShardEntry(bytes=100, sha256="0" * 64)
    write_record(path.parent, PartRecord(part="latents", facts={"family": "sd15"}, shards={"0": entry}))
    shutil.move(path.parent / "latents.json", path)


def _read_record(path: Path) -> object:
    shutil.copy(path, path.parent / "latents.json")
    return read_record(path.parent, "latents")


def _checkpoint(path: Path) -> None:
    """A bare beginning of a checkpoint: enough to be opened, looked into and refused."""
    from safetensors.torch import save_file

    names = ("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight")
    save_file({name: torch.zeros(4, 4, 3, 3) for name in names}, path)


def _with_config_of(part: str) -> tuple[Write, Read]:
    """The configuration of one part of the shipped base, and reading a base that has it in its place."""
    shipped = bundled_weights() / "miniature" / "base"
    place = Path(part) / ("scheduler_config.json" if part == "scheduler" else "config.json")

    def read(path: Path) -> object:
        folder = path.parent / f"{path.stem} base"
        if not folder.exists():
            shutil.copytree(shipped, folder, copy_function=os.symlink)
        (folder / place).unlink()
        shutil.copyfile(path, folder / place)
        return load_base(folder).modules()

    return lambda path: shutil.copyfile(shipped / place, path), read


def _listed(path: Path) -> object:
    return Library(lambda: [path.parent]).entries()


def polish_run(steps: int = 0) -> PolishRun:
    """A run of one row after so many steps towards nothing in particular."""
    like = without_effect(get_base("miniature"), [None], ("attention", 5, 6))
    generator = torch.Generator().manual_seed(1)
    adapters = TrainableAdapters(get_base("miniature"), like, 1, [None], generator, torch.device("cpu"))
    parameters = [parameter.requires_grad_(True) for parameter in adapters.parameters()]
    run = PolishRun(adapters, torch.optim.AdamW(parameters, lr=0.1), [], [], torch.full((1,), float("inf")))
    for _ in range(steps):
        torch.stack([parameter.square().sum() for parameter in parameters]).sum().backward()
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.losses.append(torch.ones(1))
    return run


def _polishing(path: Path) -> None:
    PolishCheckpoint(path, "a job").save(polish_run(3), 3)


def _polished(path: Path) -> object:
    run = polish_run()
    step = PolishCheckpoint(path, "a job").load(run, 5)
    return {"step": step, "parameters": run.adapters.parameters(), "losses": run.losses}


def _training(path: Path, steps: int = 0) -> TrainingCheckpoint:
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    for _ in range(steps):
        network(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
    trained = dict(network.named_parameters())
    averaged = {name: parameter.detach().clone() for name, parameter in trained.items()}
    return TrainingCheckpoint(path, {"steps": 5, "seed": 0}, trained, averaged, optimizer, [1.0] * steps)


def _trained(path: Path) -> object:
    checkpoint = _training(path)
    return {"step": checkpoint.resume(), "trained": dict(checkpoint.trained), "losses": checkpoint.losses}


def _table(path: Path) -> None:
    log = TrainingLog(path.parent / "table", every=1)
    for step in range(1, 4):
        log.add(step, 0.5 / step, 1e-3, 2.0 * step, {"right at 0.95": 0.25} if step == 2 else {})
    log.write()
    shutil.copyfile(log.table, path)


def _rows(path: Path) -> object:
    log = TrainingLog(path.parent / "read", every=1)
    log.folder.mkdir(exist_ok=True)
    shutil.copyfile(path, log.table)
    log.go_on(3)
    return log.rows


def _row(path: Path) -> None:
    per_person, one = torch.tensor([0.5, 0.25]), Interval(0.5, 0.4, 0.6)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "rows").mkdir()
        keep_row(
            Path(folder), "d", MethodScores("base", one, one, {"style": 0.5}, one, 0.5, 1.0, per_person, per_person)
        )
        shutil.copyfile(Path(folder) / "rows" / "base.json", path)


def _kept(path: Path) -> object:
    folder = path.parent / "trial"
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, folder / "rows" / "base.json")
    return kept_row(folder, "d", "base")


def _judge(path: Path) -> None:
    shutil.copyfile(bundled_weights() / "miniature" / "judges" / "attributes.safetensors", path)


def _judges(path: Path) -> object:
    folder = path.parent / "judges"
    folder.mkdir(exist_ok=True)
    identity = folder / "identity.safetensors"
    if not identity.exists():
        identity.symlink_to(bundled_weights() / "miniature" / "judges" / "identity.safetensors")
    shutil.copyfile(path, folder / "attributes.safetensors")
    return load_judges(folder)


def _settings(path: Path) -> None:
    config = {"steps": 3, "learning_rate": 0.5, "identifier": "sks", "crops": 0, "levels": [1, [2, {"a": None}]]}
    path.write_text(json.dumps(config))


def _polish_settings(path: Path) -> None:
    path.write_text(json.dumps({"steps": 3, "learning_rate": 0.5, "identifier": "sks", "crops": 0}))


def _onnx(path: Path) -> None:
    from tests.tiny_onnx import write_detector

    write_detector(path)


def _found(path: Path) -> object:
    picture = torch.zeros(3, 64, 64)
    picture[0, 16:24, 16:24] = 1.0
    return InsightfaceDetector([path]).find(picture, 0.5)


def _recognizer(path: Path) -> None:
    from tests.tiny_onnx import write_recognizer

    write_recognizer(path)


def _embedded(path: Path) -> object:
    face = Face((8.0, 8.0, 56.0, 56.0), 1.0)
    return OnnxRecognizer([path]).embed(torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1)), face)


READERS = {
    "container.read_container": Reader(
        ".safetensors", _identity, lambda path: read_container(path, "hyperdream-identity", 1), header_altered
    ),
    "container.read_tensors": Reader(".safetensors", _identity_on_end, read_tensors, header_altered),
    "container.open_mapped": Reader(
        ".safetensors", _identity_on_end, lambda path: open_mapped(path, "hyperdream-identity", 9), header_altered,
        is_tolerant=True, may_be_nan=True,
    ),
    "manifest.read_manifest": Reader(".json", _manifest, _read_manifest, json_altered, names_the_file=False),
    "manifest.read_record": Reader(".json", _record, _read_record, json_altered, names_the_file=False),
    "container.read_names": Reader(".safetensors", _predictor, read_names, header_altered, is_tolerant=True),
    "container.read_table": Reader(".safetensors", _predictor, read_table, header_altered, is_tolerant=True),
    "identity_file.read_identity": Reader(".safetensors", _identity, read_identity, header_altered),
    "identity_file.inspect_identity": Reader(
        ".safetensors", _identity_on_end, inspect_identity, header_altered, is_tolerant=True
    ),
    "scales_file.read_scales": Reader(".safetensors", _scales, read_scales, header_altered),
    "lora_file.read_lora_file": Reader(".safetensors", _lora, read_lora_file, header_altered, is_tolerant=True),
    "lora_file.read_lora": Reader(".safetensors", _lora, read_lora, header_altered, is_tolerant=True),
    "predictor_file.read_hypernetwork": Reader(".safetensors", _predictor, read_hypernetwork, header_altered),
    "hypernetwork_predictor.read_hypernetwork_predictor": Reader(
        ".safetensors", _predictor, read_hypernetwork_predictor, header_altered
    ),
    "predictor.open_predictor": Reader(".safetensors", _predictor, open_predictor, header_altered),
    "predictor.open_predictor of a transformer": Reader(
        ".safetensors", _transformer_predictor, open_predictor, header_altered
    ),
    "loading.load_base": Reader(".safetensors", _checkpoint, load_base, header_altered),
    "loading.load_base that draws a checkpoint": Reader(
        ".safetensors", write_checkpoint, drawn_by, checkpoint_altered, is_tolerant=True, share=0.1
    ),
    "loading.load_base that draws with a flat VAE": Reader(
        ".safetensors", write_checkpoint_of_a_flat_vae, drawn_by, checkpoint_altered, is_tolerant=True, share=0.1
    ),
    "loading.load_base that draws a folder": Reader(
        ".zip", write_folder, read_folder, folder_altered, is_tolerant=True, names_the_file=False, share=0.1
    ),
    "loading.load_base of a folder": Reader(
        ".json", *_with_config_of("unet"), json_altered, True, names_the_file=False, share=0.1
    ),
    "loading.load_base of a folder with another VAE": Reader(
        ".json", *_with_config_of("vae"), json_altered, True, names_the_file=False, share=0.1
    ),
    "loading.load_base of a folder with another text encoder": Reader(
        ".json", *_with_config_of("text_encoder"), json_altered, True, names_the_file=False, share=0.1
    ),
    "loading.load_base of a folder with another schedule": Reader(
        ".json", *_with_config_of("scheduler"), json_altered, True, names_the_file=False, share=0.1
    ),
    "inspect.inspect_file of an identity": Reader(
        ".safetensors", _identity, inspect_file, header_altered, is_tolerant=True
    ),
    "inspect.inspect_file of a predictor": Reader(
        ".safetensors", _predictor, inspect_file, header_altered, is_tolerant=True
    ),
    "inspect.inspect_file of a LoRA": Reader(".safetensors", _lora, inspect_file, header_altered, is_tolerant=True),
    "inspect.inspect_file": Reader(".safetensors", _checkpoint, inspect_file, header_altered, is_tolerant=True),
    "library.Library": Reader(".safetensors", _identity, _listed, header_altered, is_tolerant=True),
    "polish_checkpoint.PolishCheckpoint": Reader(".safetensors", _polishing, _polished, header_altered),
    "checkpoint.TrainingCheckpoint": Reader(
        ".safetensors", lambda path: _training(path, 3).save(3), _trained, header_altered
    ),
    "training_log.TrainingLog": Reader(".csv", _table, _rows, is_tolerant=True),
    "judges.load_judges": Reader(".safetensors", _judge, _judges, header_altered, names_the_file=False),
    "kept_rows.kept_row": Reader(".json", _row, _kept, json_altered, is_tolerant=True, may_be_nan=True),
    "json_text.read_json": Reader(".json", _settings, read_json, json_altered, is_tolerant=True),
    "config.config_from_json": Reader(
        ".json", _polish_settings, lambda path: config_from_json(PolishConfig, read_json(path)), json_altered,
        names_the_file=False,
    ),
    "http_request.read_body": Reader(
        ".json", _settings, lambda path: read_body(path.read_bytes()), json_altered, True, names_the_file=False
    ),
    "onnx_models.open_model": Reader(".onnx", _onnx, open_model, is_tolerant=True),
    "insightface_detector.InsightfaceDetector": Reader(".onnx", _onnx, _found, is_tolerant=True),
    "recognizer.OnnxRecognizer": Reader(".onnx", _recognizer, _embedded, is_tolerant=True),
    **{
        f"files.read_picture of {name}": Reader(
            ending, write, read_picture, picture_altered, sane=is_picture, share=0.25
        )
        for name, (ending, write) in PICTURES.items()
    },
    "files.read_image": Reader(".bmp", PICTURES["a BMP"][1], read_image, sane=is_picture),
    "files.read_references": Reader(
        ".png", PICTURES["a PNG"][1], lambda path: read_references([path], 16), picture_altered, sane=is_picture
    ),
}  # fmt: skip

THROUGH = {
    "regular_file.read_bounded": "json_text.read_json",
    "folder.load_folder": "loading.load_base",
    "folder.load_vae": "loading.load_base",
    "single_file.load_single_file": "loading.load_base",
    "frozen_encoder.load_image_encoder": "json_text.read_json",
    "detectors.open_detector": "onnx_models.open_model",
    "likeness.open_likeness": "onnx_models.open_model",
    "lora_files.read_lora_file": "lora_file.read_lora_file",
    "materials.load_autoencoder": "container.read_tensors",
    "materials.load_encoder": "container.read_tensors",
}
"""Reader -> the one of `READERS` that does its reading."""
