"""Good pictures of every format and mode that is read, as the fuzzer's seeds; PNGs altered behind right checksums."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image, features

from tests.fuzz.mutations import flipped
from tests.pictures.test_hostile_files import WIDE, exif_of

WIDTH, HEIGHT = 48, 40
SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KINDS = (b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"IDAT", b"IEND", b"iTXt", b"zTXt")
_FIELDS = (0, 1, 2, 3, 4, 8, 16, 32, 40, 64, 255)


def photograph(mode: str = "RGB") -> Image.Image:
    """Colours of chance, the same each time, in one of Pillow's modes."""
    colours = torch.randint(0, 255, (HEIGHT, WIDTH, 4), generator=torch.Generator().manual_seed(1)).byte().numpy()
    if mode == "I;16":
        return Image.fromarray(colours[..., :2].copy().view("<u2")[..., 0])
    if mode == "F":
        return Image.fromarray(colours[..., 0].astype("float32") / 255)
    return Image.fromarray(colours).convert(mode)


def _saved(mode: str, **settings: object) -> Callable[[Path], None]:
    return lambda path: photograph(mode).save(path, **settings)


def _frames(path: Path) -> None:
    rest = [photograph().rotate(turn) for turn in (90, 180)]
    photograph().save(path, save_all=True, append_images=rest)


def _see_through(path: Path) -> None:
    image = photograph("P")
    image.save(path, transparency=bytes(range(256)) if path.suffix == ".png" else 3)


PICTURES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a PNG": (".png", _saved("RGB")),
    "a PNG of 16 bits": (".png", _saved("I;16")),
    "a PNG of 1 bit": (".png", _saved("1")),
    "a PNG of grey and alpha": (".png", _saved("LA", icc_profile=WIDE)),
    "a PNG of colours and alpha": (".png", _saved("RGBA", icc_profile=WIDE, exif=exif_of(7))),
    "a PNG of a palette": (".png", _see_through),
    "an animated PNG": (".png", _frames),
    "a JPEG": (".jpg", _saved("RGB", icc_profile=WIDE, exif=exif_of(5))),
    "a progressive JPEG": (".jpg", _saved("L", progressive=True)),
    "a JPEG for print": (".jpg", _saved("CMYK")),
    "a phone's two pictures": (".mpo", _frames),
    "a TIFF": (".tif", _saved("RGB", exif=exif_of(6), compression="tiff_lzw")),
    "a TIFF of 1 bit": (".tif", _saved("1", compression="group4")),
    "a TIFF of 16 bits": (".tif", _saved("I;16")),
    "a TIFF of floats": (".tif", _saved("F", compression="tiff_deflate")),
    "a TIFF for print": (".tif", _saved("CMYK", compression="jpeg")),
    "a TIFF of pages": (".tif", _frames),
    "a WebP": (".webp", _saved("RGBA", lossless=True, icc_profile=WIDE, exif=exif_of(8))),
    "an animated WebP": (".webp", _frames),
    "a GIF": (".gif", _see_through),
    "an animated GIF": (".gif", _frames),
    "a JPEG 2000": (".jp2", _saved("RGB")),
    "a BMP": (".bmp", _saved("RGB")),
    "a BMP of a palette": (".bmp", _saved("P")),
    "a TGA": (".tga", _saved("RGBA", compression="tga_rle")),
    "a PPM": (".ppm", _saved("RGB")),
}
if features.check("avif"):
    PICTURES["an AVIF"] = (".avif", _saved("RGBA", icc_profile=WIDE, exif=exif_of(3)))
    PICTURES["an animated AVIF"] = (".avif", _frames)


def picture_altered(content: bytes, chance: random.Random) -> bytes:
    """A picture with bytes changed; a PNG mostly so that its checksums still fit, which lets what is inside through."""
    if not content.startswith(SIGNATURE) or chance.random() < 0.2:
        return flipped(content, chance)
    chunks = list(_chunks(content))
    for _ in range(chance.choice((1, 1, 2, 3))):
        place = chance.randrange(len(chunks))
        kind, data = chunks[place]
        what = chance.randrange(6)
        if kind == b"IHDR" and what < 5:
            fields = list(struct.unpack(">IIBBBBB", data.ljust(13, b"\0")[:13]))
            field = chance.randrange(7)
            fields[field] = chance.choice((*_FIELDS, 2**31 - 1, 60_000) if field < 2 else _FIELDS)
            chunks[place] = (kind, struct.pack(">IIBBBBB", *fields))
        elif what == 0:
            del chunks[place]
        elif what == 1:
            chunks.insert(chance.randrange(len(chunks)), (kind, data))
        elif what == 2:
            chunks[place] = (chance.choice(_KINDS), data)
        elif what == 3 and kind in (b"IDAT", b"iCCP"):
            start = data.index(b"\0") + 2 if kind == b"iCCP" and b"\0" in data else 0
            try:
                inside = zlib.decompress(data[start:])
            except zlib.error:
                continue
            chunks[place] = (kind, data[:start] + zlib.compress(flipped(inside, chance)))
        else:
            chunks[place] = (kind, flipped(data, chance) if len(data) > 1 else bytes(chance.randrange(40)))
    return SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = len(SIGNATURE)
    while place < len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        yield content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        place += 12 + length


def is_picture(value: object) -> bool:
    """Whether pixels are (3, h, w) or a batch of that, within 0..1 and bounded in size."""
    pixels = getattr(value, "pixels", value)
    return (
        isinstance(pixels, torch.Tensor)
        and pixels.shape[-3] == 3
        and max(pixels.shape) <= 4096
        and float(pixels.min()) >= 0
        and float(pixels.max()) <= 1
    )
