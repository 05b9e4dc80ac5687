"""Whatever a user can hand over wrongly: one sentence, a non-zero exit, and nothing lost."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from hyperdream_core.formats.identity_file import write_identity
from hyperdream_core.identity import Identity


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BAD_PICTURES = {
    "text": (b"hello", "is not a picture"),
    "truncated": (None, "is damaged or cut short"),
    "nothing": (b"", "is empty (0 bytes)"),
    "1x1": (png_header(1, 1), "1x1 px"),
    "30000x30000": (png_header(30000, 30000), "at most"),
}


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_a_picture_that_is_none_is_refused(
    refused: Callable, kind: str, picture: Path, predictor: Path, tmp_path: Path
) -> None:
    content, said = BAD_PICTURES[kind]
    bad, out = tmp_path / "bad.png", tmp_path / "old.safetensors"
    bad.write_bytes(picture.read_bytes()[:-900] if content is None else content)
    out.write_bytes(b"earlier")
    assert said in refused("predict", picture, bad, "--predictor", predictor, "--out", out)
    assert out.read_bytes() == b"earlier"


@pytest.mark.parametrize("mode", ["RGBA", "L", "I;16", "CMYK", "animated", "rotated"])
def test_an_unusual_picture_is_used(run: Callable, mode: str, picture: Path, predictor: Path, tmp_path: Path) -> None:
    path = tmp_path / ("odd.jpg" if mode in ("CMYK", "rotated") else "odd.gif" if mode == "animated" else "odd.png")
    plain = Image.open(picture)
    if mode == "animated":
        plain.save(path, save_all=True, append_images=[plain.rotate(90)])
    elif mode == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6
        plain.save(path, exif=exif)
    elif mode == "I;16":
        Image.fromarray(np.asarray(plain.convert("L")).astype(np.uint16) * 257).save(path)
    else:
        plain.convert(mode).save(path)
    ran = run("predict", path, "--predictor", predictor, "--out", tmp_path / "identity.safetensors")
    assert ran.code == 0, ran.error
    assert ("note: " in ran.error) == (mode == "animated")


def spoil(path: Path, how: str) -> None:
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, tensors = json.loads(content[8 : 8 + size]), load_file(path)
    metadata, first = header["__metadata__"], next(iter(tensors))
    if how == "truncated":
        path.write_bytes(content[:-10])
    elif how == "pickle":
        path.write_bytes(b"PK\x03\x04" + content)
    elif how == "lying header":
        path.write_bytes((size * 1000).to_bytes(8, "little") + content[8:])
    else:
        if how in ("NaN", "infinity"):
            tensors[first] = tensors[first].float().fill_(float("nan" if how == "NaN" else "inf"))
        elif how == "unknown keys":
            tensors["surprise"] = torch.zeros(1)
        else:
            metadata["version" if how == "newer" else "basis_digest"] = "99"
        save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("truncated", "is not a readable safetensors file"),
        ("pickle", "can run code"),
        ("lying header", "announces a header"),
        ("NaN", "holds NaN or infinite numbers"),
        ("infinity", "holds NaN or infinite numbers"),
        ("unknown keys", "holds 'surprise'"),
        ("newer", "has format version 99"),
        ("another basis", "another auxiliary basis"),
    ],
)
def test_an_identity_that_cannot_be_trusted_is_refused(
    run: Callable, refused: Callable, identity: Path, how: str, said: str
) -> None:
    spoil(identity, how)
    before = identity.read_bytes()
    sentence = refused("export", identity)
    assert sentence.startswith("hyperdream: sofia.safetensors: ") and said in sentence
    ran = run("inspect", "--json", identity)
    assert ran.code == 1 and said in ran.json["files"][0]["problem"] and said in ran.error
    assert identity.read_bytes() == before and not identity.with_name("sofia-lora.safetensors").exists()


def test_an_identity_for_another_base_is_refused(
    refused: Callable, identity_of: Callable[[str], Identity], base_folder: Path, tmp_path: Path
) -> None:
    write_identity(tmp_path / "foreign.safetensors", identity_of("sd15"))
    words = ("--identity", tmp_path / "foreign.safetensors", "--base", base_folder, "--out", tmp_path / "out")
    assert "made for 'sd15', but the base is 'miniature'" in refused("draw", "--prompt", "a [V] face", *words)


def test_a_checkpoint_of_an_unknown_family_is_refused(refused: Callable, run: Callable, tmp_path: Path) -> None:
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4)}, tmp_path / "odd.safetensors")
    said = refused("draw", "--prompt", "a face", "--base", tmp_path / "odd.safetensors", "--out", tmp_path / "out")
    assert "odd.safetensors" in said and "none of the known families" in said
    assert run("inspect", tmp_path / "odd.safetensors").code == 1


def test_what_is_not_there_is_named(refused: Callable, picture: Path, predictor: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.safetensors"
    assert str(tmp_path / "gone.png") in refused("predict", tmp_path / "gone.png", "--predictor", predictor)
    assert str(gone) in refused("predict", picture, "--predictor", gone, "--out", tmp_path / "x.safetensors")
    assert str(gone) in refused("draw", "--prompt", "a face", "--base", gone, "--out", tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    refused: Callable, picture: Path, predictor: Path
) -> None:
    said = refused("predict", picture, "--predictor", predictor, "--out", picture / "identity.safetensors")
    assert str(picture) in said and "cannot be written" in said


def test_an_export_never_replaces_its_identity(refused: Callable, identity: Path) -> None:
    before = identity.read_bytes()
    assert "is what is read here" in refused("export", identity, "--out", identity)
    assert identity.read_bytes() == before


def test_a_prompt_without_the_subject_is_refused_with_a_proposal(
    run: Callable, refused: Callable, identity: Path, base_folder: Path, tmp_path: Path
) -> None:
    words = (
        "draw",
        "--prompt",
        "a face, sad",
        "--identity",
        identity,
        "--base",
        base_folder,
        "--out",
        tmp_path / "out",
    )
    said = refused(*words)
    assert "'a sks face, sad'" in said and "--insert-identifier" in said
    ran = run(*words, "--insert-identifier", "--json", "--size", "32", "--steps", "1")
    assert ran.json["pictures"][0]["prompt"] == "a sks face, sad"


def test_words_the_miniature_never_learnt_are_named(
    run: Callable, refused: Callable, base_folder: Path, tmp_path: Path
) -> None:
    words = ("draw", "--prompt", "a face, juggling, sad", "--base", base_folder, "--out", tmp_path / "out")
    said = refused(*words)
    assert "'juggling'" in said and "'sad'" not in said and "wearing a hat" in said and "--allow-unknown-words" in said
    assert run(*words, "--allow-unknown-words", "--size", "32", "--steps", "1").code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--refine-steps", "-1"), "refine_steps must be 0 or more, got -1"),
        (("--device", "abacus"), "device 'abacus' cannot be used here"),
    ],
)
def test_settings_out_of_range_are_refused(
    refused: Callable, words: tuple[str, ...], said: str, picture: Path, predictor: Path, tmp_path: Path
) -> None:
    out = tmp_path / "identity.safetensors"
    assert said in refused("predict", picture, "--predictor", predictor, "--out", out, *words)
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--guidance", "hybrid", "--schedule", "0-0.4:1, 0.5-1:0"), "noise bands have a gap at [0.4, 0.5)"),
        (("--guidance", "hybrid", "--schedule", "0-0.6:1, 0.5-1:0"), "noise bands overlap at [0.5, 0.6)"),
        (("--guidance", "weights", "--branch-weights", "0", "0", "-2", "2"), "sum to 0, expected 1"),
        (("--base-scale", "3"), "guidance 'base-null' has no dials, so base_scale does nothing"),
        (("--active", "0.8", "0.2"), "active must be two noise levels"),
    ],
)
def test_guidance_that_cannot_be_is_refused_before_anything_is_loaded(
    refused: Callable, words: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert said in refused("draw", "--base", "nowhere", "--prompt", "a [V] face", "--out", out, *words)
    assert not out.exists()


def test_a_lora_of_another_family_is_refused(
    refused: Callable, run: Callable, identity_of: Callable[[str], Identity], base_folder: Path, tmp_path: Path
) -> None:
    write_identity(tmp_path / "large.safetensors", identity_of("sd15"))
    assert run("export", tmp_path / "large.safetensors").code == 0
    words = ("--base", base_folder, "--identity", tmp_path / "large-lora.safetensors", "--guidance", "hybrid")
    said = refused("draw", "--prompt", "a [V] face", "--out", tmp_path / "out", *words)
    assert "large-lora.safetensors: " in said
