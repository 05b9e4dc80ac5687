"""Pictures from a user's disk to tensors and back; whatever cannot be used is refused with a reason."""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..errors import FileFormatError, OutputError, ReferenceImageError
from ..ops.finite import sound
from ..regular_file import check_regular
from ..whole_file import as_text, whole_file
from .colours import to_srgb

SMALLEST_SIDE = 32
"""Pictures with a shorter side (px) are refused: a face in them is a handful of pixels."""
LARGEST_PIXELS = 64_000_000
"""Pictures with more pixels are refused before they are decoded; today's largest camera sensors stay below."""
LARGEST_SIDE = 4096
"""Pictures with a longer side (px) are reduced to this on reading, far above what any base looks at."""
MOST_STRETCHED = 20
"""Pictures more than this many times as long as wide are refused: strips and ruled lines, no photographs."""
LARGEST_FILE = 8 * LARGEST_PIXELS
"""Files with more bytes are refused before they are read: the largest picture, uncompressed in 16 bit with alpha."""

WHITE = (255, 255, 255)

# Pillow also opens formats that start an outside program (EPS) or are drawings, not photographs.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "PPM", "TGA", "JPEG2000")
# What Pillow's decoders raise on damaged files; OSError is by far the most frequent, and AVIF's is RuntimeError.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 0x0112
_PIXELS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Picture:
    """A picture as read: `pixels` (3, h, w) float32 in 0..1, and `notes` on anything that was left out or changed."""

    pixels: Tensor
    notes: tuple[str, ...] = ()
    name: str = ""
    """what errors and reports call it"""


def read_image(path: str | Path, background: tuple[int, int, int] = WHITE) -> Tensor:
    """The picture in a file, upright, as (3, h, w) float32 in 0..1; `read_picture` without its notes."""
    return read_picture(path, background).pixels


def read_picture(path: str | Path, background: tuple[int, int, int] = WHITE) -> Picture:
    """Read a photograph or drawing from a file, turned upright as its EXIF block says.

    Of an animation or a file of several pages the first one is taken; transparency shows `background` (0..255).
    The size is checked from the header, so that memory stays bounded however large the picture claims to be.

    Raises:
        ReferenceImageError: the file is missing, empty, damaged, no picture, too small or too large.
    """
    path = Path(path)
    _check_file(path)
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            # Pillow warns of large and of damaged pictures; we refuse the former and decode the latter to the end.
            warnings.simplefilter("ignore")
            Image.init()
            with Image.open(file, formats=[name for name in _FORMATS if name in Image.OPEN]) as image:
                return _picture(image, str(path), background)
    except UnidentifiedImageError as error:
        raise ReferenceImageError(f"{path}: {_no_picture(path)}") from error
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        raise ReferenceImageError(
            _too_large(str(path), f"{int(pixels[0]):,} px" if pixels else "too many px")
        ) from error
    except _DAMAGE as error:
        # The system's errors carry a number, those of Pillow's decoders do not.
        if not isinstance(error, OSError) or error.errno is None:
            raise ReferenceImageError(_damaged(str(path), error)) from error
        raise ReferenceImageError(
            f"{path}: cannot be opened ({error.strerror}), expected a picture file you may read; check its permissions"
        ) from error


def _check_file(path: Path) -> None:
    """Refuse what is no file, or none of a picture's size, before it is opened."""
    try:
        size = check_regular(path)
    except FileFormatError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise ReferenceImageError(f"{path}: there is no such file, expected a picture; check the name") from error
        raise ReferenceImageError(f"{path}: {error.problem}") from error
    if size == 0:
        raise ReferenceImageError(f"{path}: is empty (0 bytes), expected a picture; copy or download it again")
    if size > LARGEST_FILE:
        raise ReferenceImageError(
            f"{path}: has {size:,} bytes, expected a picture of at most {LARGEST_FILE:,}; use a smaller one"
        )


def picture_from_pil(image: Image.Image, name: str, background: tuple[int, int, int] = WHITE) -> Picture:
    """Turn a Pillow image of any mode into a `Picture`, and leave it as it is; `name` is what errors call it.

    Raises:
        ReferenceImageError: it is too small, too large, damaged or of a kind that has no colours in 0..255.
    """
    return _picture(image, name, background, is_ours=False)


def check_size(name: str, width: int, height: int) -> None:
    """Refuse a picture of that many px by its sides alone.

    Raises:
        ReferenceImageError: too small, too large, or a strip.
    """
    if min(width, height) < SMALLEST_SIDE:
        raise ReferenceImageError(
            f"{name}: is {width}x{height} px, expected at least {SMALLEST_SIDE} px on each side; use a larger picture"
        )
    if width * height > LARGEST_PIXELS:
        raise ReferenceImageError(_too_large(name, f"{width}x{height} px"))
    if max(width, height) > MOST_STRETCHED * min(width, height):
        raise ReferenceImageError(
            f"{name}: is {width}x{height} px, a strip more than {MOST_STRETCHED} times as long as wide, expected a "
            "photograph; cut out the part that shows the subject"
        )


def _picture(image: Image.Image, name: str, background: tuple[int, int, int], is_ours: bool = True) -> Picture:
    """`picture_from_pil`; an image of ours may be changed, which spares a copy of a large one."""
    check_size(name, *image.size)
    notes = []
    try:
        # A phone's MPO holds previews and depth maps besides the photograph; nobody misses those.
        has_more = image.format != "MPO" and bool(getattr(image, "is_animated", False))
        image.load()
        # Read after loading, and never of a TIFF: Pillow turns that one itself while it loads.
        orientation, exif_note = (1, "") if image.format == "TIFF" else _orientation(image)
        width, height = image.size
        image = _plain(image, name, is_ours)
        if max(width, height) > LARGEST_SIDE:
            # First of all that follows: colours and backgrounds of all px would take several copies of them.
            image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
        image, colour_note = to_srgb(image)
        image, is_transparent = _on_background(image, background)
    except ReferenceImageError:
        raise
    except _DAMAGE as error:
        raise ReferenceImageError(_damaged(name, error)) from error
    if has_more:
        notes.append("holds several frames; the first one is used")
    if exif_note:
        notes.append(exif_note)
    if max(width, height) > LARGEST_SIDE:
        notes.append(f"reduced from {width}x{height} px to a longest side of {LARGEST_SIDE} px")
    if colour_note:
        notes.append(colour_note)
    if is_transparent:
        notes.append(f"is transparent in places, where the background colour {background} shows")
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    pixels = rearrange(torch.from_numpy(np.array(image)), "h w c -> c h w").contiguous()
    return Picture(pixels.float().div_(255), tuple(f"{name}: {note}" for note in notes), name)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """The image (3, h, w) as (3, height, width) by Lanczos, antialiased where it shrinks; values stay in 0..1."""
    if image.shape[-2:] == (height, width):
        return image.clone()
    # Channel by channel as Pillow's float mode, which has no rounding to 8 bits.
    channels = [
        np.asarray(Image.fromarray(channel).resize((width, height), Image.Resampling.LANCZOS))
        for channel in image.detach().float().cpu().numpy()
    ]
    return torch.from_numpy(np.stack(channels)).clamp(0, 1).to(image)


def square_crop(image: Tensor, size: int) -> Tensor:
    """The largest centred square of the image (3, h, w), resized to the base's (3, size, size)."""
    height, width = image.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return resize(image[:, top : top + side, left : left + side], size, size)


def read_references(paths: Sequence[str | Path], size: int) -> Picture:
    """Read pictures of one subject as one batch (n, 3, size, size), centre-cropped, with the notes on all of them.

    Raises:
        ReferenceImageError: there is no path, or one of the pictures cannot be used.
    """
    if not paths:
        raise ReferenceImageError("no reference picture given, expected at least one; name a picture file")
    pictures = [read_picture(path) for path in paths]
    pixels = torch.stack([square_crop(picture.pixels, size) for picture in pictures])
    return Picture(pixels, tuple(note for picture in pictures for note in picture.notes))


def to_pil(image: Tensor) -> Image.Image:
    """The image (3, h, w) in 0..1 as an 8-bit RGB Pillow image, rounded to nearest; values outside are clipped.

    Raises:
        OutputError: it has another shape, or holds NaN or infinity, which would come out as black or white.
    """
    sound(image, "the picture", "nothing was written; see where its numbers come from", (3, None, None))
    pixels = image.detach().float().cpu().clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(rearrange(pixels, "c h w -> h w c").numpy())


def save_image(path: str | Path, image: Tensor | Image.Image, texts: Mapping[str, str] | None = None) -> Path:
    """Write an image (3, h, w) in 0..1, or a Pillow image, as PNG, whole or not at all; make missing folders.

    Args:
        texts: facts to store in the file, such as the prompt and the seed.

    Returns:
        The path written.

    Raises:
        OutputError: the folder cannot be written or the disk is full; a file that was there before is intact.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise OutputError(f"{path}: pictures are written as PNG, expected a name that ends in .png; rename it")
    facts = PngInfo()
    for key, text in (texts or {}).items():
        facts.add_itxt(as_text(key), as_text(text))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); choose a folder with free space you may write"
        ) from error
    with whole_file(path) as part:
        picture = image if isinstance(image, Image.Image) else to_pil(image)
        picture.save(part, format="PNG", pnginfo=facts)
    return path


def _orientation(image: Image.Image) -> tuple[int, str]:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1)), ""
    except _DAMAGE:
        # Cameras and editors write broken EXIF blocks around sound pictures.
        return 1, "its EXIF block is unreadable, so it is taken to be upright"


def _plain(image: Image.Image, name: str, is_ours: bool) -> Image.Image:
    """The picture in 8 bits without palette or colour key: grey, RGB or CMYK, and alpha where something shows through.

    Its colours keep their profile in `info`.
    """
    profile = image.info.get("icc_profile")
    if image.mode.startswith(("I", "F")):
        plain = _eight_bits(image, name)
    elif image.mode in ("RGBa", "La", "PA") or "transparency" in image.info:
        plain = image.convert("LA" if image.mode == "La" else "RGBA")
    elif image.mode in ("L", "LA", "RGB", "RGBA", "CMYK"):
        plain = image if is_ours else image.copy()
    else:
        plain = image.convert("L" if image.mode == "1" else "RGB")
    plain.info = {} if profile is None else {"icc_profile": profile}
    return plain


def _on_background(image: Image.Image, background: tuple[int, int, int]) -> tuple[Image.Image, bool]:
    """The picture in RGB, what shows through it filled, and whether there is anything of that."""
    if image.mode not in ("RGBA", "LA"):
        return image.convert("RGB"), False
    canvas = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB"), bool(
        np.asarray(image.getchannel("A")).min() < 255
    )


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Greyscale of 16 bit, or of floats in 0..1, as 8 bit; Pillow's own conversion would clip instead of scaling.

    In strips: numbers of 64 bits for all px of a large picture would take gigabytes.
    """
    top = 1.0 if image.mode == "F" else 65535.0
    width, height = image.size
    grey = Image.new("L", image.size)
    rows = max(1, _PIXELS_AT_ONCE // width)
    for first in range(0, height, rows):
        values = np.asarray(image.crop((0, first, width, min(first + rows, height)))).astype(np.float64)
        # Written so that NaN is refused as well.
        if not (values.min() >= 0 and values.max() <= top):
            raise ReferenceImageError(
                f"{name}: has grey values from {values.min():g} to {values.max():g}, expected 0 to {top:g}; "
                "save it as an 8 bit PNG or JPEG"
            )
        grey.paste(Image.fromarray(np.round(values * (255 / top)).astype(np.uint8)), (0, first))
    return grey


def _damaged(name: str, error: Exception) -> str:
    return f"{name}: is damaged or cut short ({error}), expected a whole picture; copy or download it again"


def _too_large(name: str, size: str) -> str:
    return (
        f"{name}: has {size}, expected at most {LARGEST_PIXELS:,} px; reduce it to a longest side of {LARGEST_SIDE} px"
    )


def _no_picture(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(12)
    if start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"mif1", b"msf1"):
        return "is a HEIC picture, expected JPEG, PNG or WebP; export it as JPEG from the phone or a picture viewer"
    return "is not a picture we can read, expected JPEG, PNG, WebP, AVIF, GIF, TIFF or BMP; save it as one of these"
