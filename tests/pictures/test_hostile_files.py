"""Pictures that turn, shift, hide or swell: what a stranger's file does is either right, or said, or refused."""

from __future__ import annotations

import os
import struct
import threading
import tracemalloc
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, features

from hyperdream_core.errors import ReferenceImageError
from hyperdream_core.pictures import files
from hyperdream_core.pictures.files import picture_from_pil, read_picture

WIDTH, HEIGHT = 96, 64
FORMATS = [name for name in ("tif", "png", "jpg", "webp", "avif") if name != "avif" or features.check("avif")]


def corners() -> Image.Image:
    """Four quarters in four colours, so that each of the eight positions looks different."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), (200, 40, 40))
    picture.paste((40, 200, 40), (WIDTH // 2, 0, WIDTH, HEIGHT // 2))
    picture.paste((40, 40, 200), (0, HEIGHT // 2, WIDTH // 2, HEIGHT))
    picture.paste((220, 220, 220), (WIDTH // 2, HEIGHT // 2, WIDTH, HEIGHT))
    return picture


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", [3, 6, 7])
@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_is_turned_once(ending: str, orientation: int, tmp_path: Path) -> None:
    stored = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE}[orientation]
    path = tmp_path / f"turned.{ending}"
    corners().transpose(stored).save(path, exif=exif_of(orientation), quality=95)
    picture = read_picture(path)
    upright = torch.from_numpy(np.array(corners())).permute(2, 0, 1) / 255
    assert picture.pixels.shape == (3, HEIGHT, WIDTH) and picture.notes == ()
    for y, x in ((10, 10), (10, -10), (-10, 10), (-10, -10)):
        torch.testing.assert_close(picture.pixels[:, y, x], upright[:, y, x], rtol=0, atol=0.06)


def profile(gamma: float, corner: tuple[float, float]) -> bytes:
    """An ICC profile with red at another place and another tone curve than sRGB's, written by hand."""

    def fixed(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(fixed, values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"Wide\nred\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(79),
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(*(0.4361 + corner[0], 0.2225 + corner[1], 0.0139)),
        b"gXYZ": xyz(*(0.3851 - corner[0], 0.7169 - corner[1], 0.0971)),
        b"bXYZ": xyz(0.1431, 0.0606, 0.7141),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    start, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, body in tags.items():
        body += bytes(-len(body) % 4)
        table += name + struct.pack(">II", start + len(data), len(body))
        data += body
    head = struct.pack(">I4sI4s4s4s12x4s", start + len(data), b"lcms", 0x02100000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    head += bytes(28) + b"".join(map(fixed, (0.9642, 1.0, 0.8249)))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


WIDE = profile(2.2, (0.08, 0.04))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_colours_come_out_in_srgb(mode: str, tmp_path: Path) -> None:
    skin = Image.new("RGB", (WIDTH, HEIGHT), (200, 150, 120))
    skin.convert(mode).save(tmp_path / "wide.png", icc_profile=WIDE)
    picture = read_picture(tmp_path / "wide.png")
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(BytesIO(WIDE)), ImageCms.createProfile("sRGB"), "RGB", "RGB"
    )
    plain = skin.convert(mode).convert("RGB")
    expected = transform.apply(plain).getpixel((5, 5))
    assert [round(float(value)) for value in picture.pixels[:, 5, 5] * 255] == list(expected)
    assert mode == "L" or max(abs(a - b) for a, b in zip(expected, plain.getpixel((5, 5)), strict=True)) > 4
    assert picture.notes == (f"{tmp_path / 'wide.png'}: colours converted from Wide red to sRGB",)


def test_a_profile_of_srgb_changes_no_bit_and_is_not_worth_a_word(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    corners().save(tmp_path / "plain.png", icc_profile=srgb)
    picture = read_picture(tmp_path / "plain.png")
    assert picture.notes == ()
    assert torch.equal(picture.pixels * 255, torch.from_numpy(np.array(corners())).permute(2, 0, 1).float())


@pytest.mark.parametrize(
    "damaged", [b"no profile", WIDE[:200], WIDE.replace(b"RGB ", b"CMYK", 1), WIDE.replace(b"RGB ", b"\xff\xfe\0\0", 1)]
)
def test_a_damaged_profile_is_said_and_the_picture_read(damaged: bytes, tmp_path: Path) -> None:
    corners().save(tmp_path / "odd.png", icc_profile=damaged)
    picture = read_picture(tmp_path / "odd.png")
    (note,) = picture.notes
    assert "colour profile that cannot be used" in note and note.endswith("so it is taken to be sRGB")
    assert torch.equal(picture.pixels * 255, torch.from_numpy(np.array(corners())).permute(2, 0, 1).float())


def test_a_transparent_picture_says_what_shows_through_it(tmp_path: Path) -> None:
    cut = corners()
    cut.putalpha(Image.linear_gradient("L").resize(cut.size))
    cut.save(tmp_path / "cut.png")
    (note,) = read_picture(tmp_path / "cut.png", (10, 20, 30)).notes
    assert note.endswith("is transparent in places, where the background colour (10, 20, 30) shows")
    cut.putalpha(255)
    cut.save(tmp_path / "opaque.png")
    assert read_picture(tmp_path / "opaque.png").notes == ()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes among this system's files")
def test_pipes_devices_and_folders_are_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
    said: list[str] = []

    def read(path: Path) -> None:
        try:
            read_picture(path)
        except ReferenceImageError as error:
            said.append(str(error))

    for path in (tmp_path / "pipe.png", tmp_path / "link.png", Path("/dev/zero"), tmp_path, Path("a\0b.png")):
        reader = threading.Thread(target=read, args=(path,), daemon=True)
        reader.start()
        reader.join(20)
        assert not reader.is_alive(), f"{path} is waited for"
    kinds = ["a pipe or a device"] * 3 + ["a folder"]
    assert [sentence.split(": is ")[1].split(", but")[0] for sentence in said[:4]] == kinds
    assert "embedded null byte" in said[4]


def test_a_file_larger_than_any_picture_is_refused_unread(tmp_path: Path) -> None:
    with open(tmp_path / "endless.png", "wb") as file:
        file.truncate(files.LARGEST_FILE + 1)  # a hole: nothing is written
    with pytest.raises(ReferenceImageError, match=r"endless\.png: has 512,000,001 bytes, expected a"):
        read_picture(tmp_path / "endless.png")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_a_damaged_avif_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.avif"
    Image.effect_noise((WIDTH, HEIGHT), 80).convert("RGB").save(path)
    content, refused = path.read_bytes(), 0
    begin = content.index(b"mdat") + 4
    for offset in range(0, 40, 4):
        path.write_bytes(content[: begin + offset] + b"\xff" * 60 + content[begin + offset + 60 :])
        try:
            read_picture(path)
        except ReferenceImageError as error:
            refused += "broken.avif: is damaged" in str(error)
    assert refused


@pytest.mark.parametrize("kind", [RuntimeError, KeyError, AttributeError, MemoryError, OverflowError, AssertionError])
def test_whatever_a_decoder_raises_is_a_damaged_picture(
    kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corners().save(tmp_path / "bad.png")

    def load(self: object) -> None:
        raise kind("its own words")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(ReferenceImageError, match=r"bad\.png: is damaged or cut short \('?its own words"):
        read_picture(tmp_path / "bad.png")


@pytest.mark.parametrize("size", [(60_000, 64), (64, 60_000), (1_000_000, 64), (1_000, 40)])
def test_strips_are_refused(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("1", size).save(tmp_path / "strip.png")
    with pytest.raises(
        ReferenceImageError, match=rf"strip\.png: is {size[0]}x{size[1]} px, a strip more than 20 times"
    ):
        read_picture(tmp_path / "strip.png")
    with pytest.raises(ReferenceImageError, match="a strip"):
        picture_from_pil(Image.new("L", size), "strip")


def png(width: int, height: int, depth: int, kind: int, row: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    deflate = zlib.compressobj(1)
    body = b"".join(deflate.compress(bytes(row + 1)) for _ in range(height)) + deflate.flush()
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("depth", "kind", "bytes_each"), [(16, 0, 2), (8, 6, 4), (8, 2, 3)], ids=["grey 16", "RGBA", "RGB"]
)
def test_memory_beside_the_decoders_is_a_few_bytes_for_each_px(
    depth: int, kind: int, bytes_each: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What NumPy takes is traced. A process that reads 64 million px of 16 bit took 1.8 GB and takes 0.66 GB."""
    monkeypatch.setattr(files, "LARGEST_SIDE", 512)
    monkeypatch.setattr(files, "_PIXELS_AT_ONCE", 1 << 14)
    (tmp_path / "large.png").write_bytes(png(2000, 2000, depth, kind, 2000 * bytes_each))
    tracemalloc.start()
    try:
        assert read_picture(tmp_path / "large.png").pixels.shape == (3, 512, 512)
        assert tracemalloc.get_traced_memory()[1] < 2 * 2000 * 2000
    finally:
        tracemalloc.stop()


def test_of_many_frames_only_the_first_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shades = [Image.new("L", (WIDTH, HEIGHT), shade) for shade in range(50)]
    seen: list[int] = []
    for ending in ("gif", "tif"):
        shades[0].save(tmp_path / f"moving.{ending}", save_all=True, append_images=shades[1:])
    from PIL.GifImagePlugin import GifImageFile
    from PIL.TiffImagePlugin import TiffImageFile

    for kind in (GifImageFile, TiffImageFile):
        seek: Callable[..., None] = kind._seek

        def counted(self: object, frame: int, *more: object, seek: Callable[..., None] = seek) -> None:
            seen.append(frame)
            seek(self, frame, *more)

        monkeypatch.setattr(kind, "_seek", counted)
    for ending in ("gif", "tif"):
        (note,) = read_picture(tmp_path / f"moving.{ending}").notes
        assert "holds several frames; the first one is used" in note
    assert max(seen) <= 1


def test_a_hosts_image_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGEST_SIDE", 48)
    image = corners()
    image.info["icc_profile"] = WIDE
    assert picture_from_pil(image, "host").pixels.shape == (3, 32, 48)
    assert image.size == (WIDTH, HEIGHT) and image.info["icc_profile"] == WIDE
    assert image.tobytes() == corners().tobytes()
