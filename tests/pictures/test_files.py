from __future__ import annotations

import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from hyperdream_core.errors import OutputError, ReferenceImageError
from hyperdream_core.pictures import files as images
from hyperdream_core.pictures.files import (
    read_image,
    read_picture,
    read_references,
    resize,
    save_image,
    square_crop,
    to_pil,
)

WIDTH, HEIGHT = 50, 40


def gradient() -> np.ndarray:
    """(HEIGHT, WIDTH, 3) uint8 whose red tells x, green tells y, blue is constant."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x * 5, y * 6, np.full_like(x, 77)], axis=-1).astype(np.uint8)


def as_tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32) / 255).permute(2, 0, 1)


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(gradient())


def test_an_rgb_picture_is_read_exactly(tmp_path: Path, photo: Image.Image) -> None:
    photo.save(tmp_path / "photo.png")
    picture = read_picture(tmp_path / "photo.png")
    torch.testing.assert_close(picture.pixels, as_tensor(gradient()), rtol=0, atol=0)
    assert picture.notes == ()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(tmp_path: Path, photo: Image.Image, orientation: int) -> None:
    # How a camera held that way stores the scene; the definitions of EXIF 2.3, section 4.6.4, tag 274.
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](gradient())
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "photo.png", exif=exif)
    torch.testing.assert_close(read_image(tmp_path / "photo.png"), as_tensor(gradient()), rtol=0, atol=0)


def test_a_broken_exif_block_is_noted_and_the_picture_read(tmp_path: Path, photo: Image.Image) -> None:
    photo.save(tmp_path / "photo.jpg", exif=b"Exif\x00\x00not a tiff header")
    picture = read_picture(tmp_path / "photo.jpg")
    assert picture.pixels.shape == (3, HEIGHT, WIDTH)
    assert all("EXIF block is unreadable" in note for note in picture.notes)


def test_transparency_shows_the_chosen_background(tmp_path: Path) -> None:
    rgba = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    rgba[:, :25] = (200, 100, 50, 255)
    rgba[:, 25:] = (200, 100, 50, 0)
    Image.fromarray(rgba).save(tmp_path / "cut.png")
    pixels = read_image(tmp_path / "cut.png", background=(0, 255, 0)) * 255
    assert pixels[:, 0, 0].tolist() == [200, 100, 50]
    assert pixels[:, 0, -1].tolist() == [0, 255, 0]
    assert (read_image(tmp_path / "cut.png")[:, 0, -1] == 1).all()


def test_half_transparent_grey_is_mixed_with_the_background(tmp_path: Path) -> None:
    grey_alpha = np.full((HEIGHT, WIDTH, 2), (100, 51), np.uint8)
    with Image.fromarray(grey_alpha) as half:
        assert half.mode == "LA"
        half.save(tmp_path / "la.png")
    pixels = read_image(tmp_path / "la.png", background=(0, 0, 0)) * 255
    torch.testing.assert_close(pixels, torch.full_like(pixels, 20.0), rtol=0, atol=0)  # 100 * 51 / 255


def test_a_palette_with_a_transparent_colour_shows_the_background(tmp_path: Path) -> None:
    palette = Image.new("P", (WIDTH, HEIGHT), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.paste(0, (0, 0, 25, HEIGHT))
    palette.save(tmp_path / "palette.png", transparency=1)
    pixels = read_image(tmp_path / "palette.png", background=(9, 8, 7)) * 255
    assert pixels[:, 0, 0].tolist() == [10, 20, 30]
    assert pixels[:, 0, -1].tolist() == [9, 8, 7]


def test_an_rgb_picture_with_a_colour_key_shows_the_background(tmp_path: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT), (1, 2, 3)).save(tmp_path / "key.png", transparency=(1, 2, 3))
    assert (read_image(tmp_path / "key.png") == 1).all()


@pytest.mark.parametrize(("mode", "value", "expected"), [("L", 90, 90), ("1", 1, 255)])
def test_grey_becomes_three_equal_channels(tmp_path: Path, mode: str, value: int, expected: int) -> None:
    Image.new(mode, (WIDTH, HEIGHT), value).save(tmp_path / "grey.png")
    assert (read_image(tmp_path / "grey.png") * 255 == expected).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(np.full((HEIGHT, WIDTH), 128 * 257, np.uint16)).save(tmp_path / f"deep.{suffix}")
    assert (read_image(tmp_path / f"deep.{suffix}") * 255 == 128).all()


def test_sixteen_bit_colour_is_scaled(tmp_path: Path) -> None:
    # Pillow cannot write 16 bit RGB, so the PNG is put together by hand: filter byte 0, then big-endian samples.
    row = b"\x00" + struct.pack(">3H", 0, 32896, 65535) * WIDTH
    header = struct.pack(">2I5B", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(row * HEIGHT)), (b"IEND", b"")]
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks))
    assert (read_image(tmp_path / "deep.png")[:, 7, 5] * 255).tolist() == [0, 128, 255]


def test_float_grey_in_0_to_1_is_read_and_other_ranges_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((HEIGHT, WIDTH), 0.6, np.float32)).save(tmp_path / "unit.tif")
    assert (read_image(tmp_path / "unit.tif") * 255 == 153).all()
    Image.fromarray(np.full((HEIGHT, WIDTH), 7.5, np.float32)).save(tmp_path / "wide.tif")
    with pytest.raises(
        ReferenceImageError, match=r"wide\.tif: has grey values from 7\.5 to 7\.5, expected 0 to 1; save"
    ):
        read_image(tmp_path / "wide.tif")
    Image.fromarray(np.full((HEIGHT, WIDTH), np.nan, np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(ReferenceImageError, match="from nan to nan"):
        read_image(tmp_path / "nan.tif")


def test_cmyk_comes_out_in_its_colours(tmp_path: Path) -> None:
    Image.new("CMYK", (WIDTH, HEIGHT), (255, 0, 0, 0)).save(tmp_path / "print.jpg", quality=100)
    pixels = read_image(tmp_path / "print.jpg")[:, 5, 5] * 255
    # JPEG rounds; cyan has no red and full green and blue.
    torch.testing.assert_close(pixels, torch.tensor([0.0, 255.0, 255.0]), rtol=0, atol=3)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_an_animation_the_first_frame_is_used_and_that_is_said(tmp_path: Path, suffix: str) -> None:
    red, blue = (Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue"))
    options = {"lossless": True} if suffix == "webp" else {}
    red.save(tmp_path / f"moving.{suffix}", save_all=True, append_images=[blue, red], **options)
    picture = read_picture(tmp_path / f"moving.{suffix}")
    assert (picture.pixels[:, 3, 3] * 255).tolist() == [255, 0, 0]
    assert picture.notes == (f"{tmp_path / f'moving.{suffix}'}: holds several frames; the first one is used",)


def test_a_tiny_picture_is_refused_with_its_size(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    with pytest.raises(ReferenceImageError, match=r"dot\.png: is 1x1 px, expected at least 32 px on each side; use a"):
        read_image(tmp_path / "dot.png")


@pytest.mark.parametrize(
    ("side", "size"), [(30_000, "900,000,000 px"), (9_000, "9000x9000 px"), (12_000, "12000x12000 px")]
)
def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path: Path, side: int, size: str) -> None:
    # Only the header is there: decoding would fail with other words.
    header = struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0)
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b""))
    tracemalloc.start()
    try:
        with pytest.raises(
            ReferenceImageError, match=rf"huge\.png: has {size}, expected at most 64,000,000 px; reduce"
        ):
            read_image(tmp_path / "huge.png")
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_a_picture_beyond_the_longest_side_is_reduced_and_turned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "LARGEST_SIDE", 100)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (400, 200), "red").save(tmp_path / "large.png", exif=exif)
    picture = read_picture(tmp_path / "large.png")
    assert picture.pixels.shape == (3, 100, 50)
    assert "reduced from 400x200 px to a longest side of 100 px" in picture.notes[0]


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ReferenceImageError, match=r"empty\.jpg: is empty \(0 bytes\), expected a picture; copy"):
        read_image(tmp_path / "empty.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tif", "bmp"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_truncated_picture_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(
        ReferenceImageError, match=rf"cut\.{suffix}: is (damaged or cut short|not a picture we can read)"
    ):
        read_image(path)


@pytest.mark.parametrize(
    "data", [b"hello, I am a text", b"\x00" * 100, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\n"]
)
def test_what_is_no_picture_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "note.png").write_bytes(data)
    with pytest.raises(ReferenceImageError, match=r"note\.png: is not a picture we can read, expected JPEG.*; save it"):
        read_image(tmp_path / "note.png")


def test_a_phones_heic_is_named(tmp_path: Path) -> None:
    (tmp_path / "phone.jpg").write_bytes(b"\x00\x00\x00\x18ftypheic" + b"\x00" * 100)
    with pytest.raises(ReferenceImageError, match=r"phone\.jpg: is a HEIC picture, expected JPEG.*; export it as JPEG"):
        read_image(tmp_path / "phone.jpg")


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReferenceImageError, match=r"nobody\.png: there is no such file, expected a picture; check"):
        read_image(tmp_path / "nobody.png")
    with pytest.raises(ReferenceImageError, match=r"is a folder, but a file is expected"):
        read_image(tmp_path)


def test_resize_keeps_a_constant_and_the_range(tmp_path: Path) -> None:
    constant = torch.full((3, 13, 9), 0.3)
    torch.testing.assert_close(resize(constant, 31, 7), torch.full((3, 31, 7), 0.3))
    edges = (torch.arange(40) // 10 % 2).float().expand(3, 40, 40)
    assert resize(edges, 97, 97).min() == 0 and resize(edges, 97, 97).max() == 1


def test_shrinking_averages_instead_of_skipping() -> None:
    # Stripes of one pixel alias to black or white unless the filter covers all pixels; grey is the right answer.
    stripes = (torch.arange(128) % 2).float().expand(3, 128, 128)
    inner = resize(stripes, 16, 16)[:, 2:-2, 2:-2]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.5), rtol=0, atol=0.02)


def test_the_square_is_cut_from_the_centre() -> None:
    wide = as_tensor(gradient())
    torch.testing.assert_close(square_crop(wide, HEIGHT), wide[:, :, 5:45], rtol=0, atol=0)
    torch.testing.assert_close(square_crop(wide.mT, HEIGHT), wide[:, :, 5:45].mT, rtol=0, atol=0)
    assert square_crop(wide, 17).shape == (3, 17, 17)


def test_references_become_one_batch_and_keep_their_notes(tmp_path: Path, photo: Image.Image) -> None:
    photo.save(tmp_path / "a.png")
    photo.save(tmp_path / "b.gif", save_all=True, append_images=[Image.new("RGB", photo.size, "red")])
    references = read_references([tmp_path / "a.png", tmp_path / "b.gif"], 16)
    assert references.pixels.shape == (2, 3, 16, 16)
    torch.testing.assert_close(references.pixels[0], square_crop(as_tensor(gradient()), 16))
    assert len(references.notes) == 1 and "b.gif" in references.notes[0]
    with pytest.raises(ReferenceImageError, match="no reference picture given, expected at least one; name"):
        read_references([], 16)


def test_a_saved_image_reads_back_with_its_texts(tmp_path: Path) -> None:
    image = as_tensor(gradient())
    path = save_image(tmp_path / "new" / "image.png", image, {"prompt": "a [V] face, smiling, ümlaut"})
    torch.testing.assert_close(read_image(path), image, rtol=0, atol=0)
    with Image.open(path) as stored:
        assert isinstance(stored, PngImagePlugin.PngImageFile)
        assert stored.text["prompt"] == "a [V] face, smiling, ümlaut"
    assert [file.name for file in path.parent.iterdir()] == ["image.png"]


def test_values_are_rounded_to_nearest_and_clipped() -> None:
    image = torch.tensor([-0.5, 0.4 / 255, 0.6 / 255, 1.5]).expand(3, 1, 4)
    assert np.asarray(to_pil(image))[0, :, 0].tolist() == [0, 0, 1, 255]


def test_a_failed_save_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_image(tmp_path / "image.png", torch.zeros(3, 8, 8))
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        OutputError,
        match=r"image\.png: cannot be written \(No space left on device\); a file of that name is as it was",
    ):
        save_image(path, torch.ones(3, 8, 8))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["image.png"]


def test_a_name_that_is_no_png_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        OutputError, match=r"image\.jpg: pictures are written as PNG, expected a name that ends in \.png"
    ):
        save_image(tmp_path / "image.jpg", torch.zeros(3, 8, 8))


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_texts_in_another_encoding_are_written_escaped(tmp_path: Path) -> None:
    path = save_image(tmp_path / "x.png", torch.zeros(3, 8, 8), {"prompt": "caf\udce9 \ud800"})
    with Image.open(path) as image:
        assert image.text["prompt"] == "caf\\udce9 \\ud800"  # type: ignore[attr-defined]
