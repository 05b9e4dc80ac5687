"""Colours by a picture's own ICC profile to sRGB, in which every base was trained.

A phone's Display P3 or a camera's Adobe RGB read as if it were sRGB shifts skin by 4 to 15 of 255.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from ..errors import printable

_LARGEST_PROFILE = 4_000_000
"""bytes; those of printing presses, the largest, have half of that"""
_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_LONGEST_NAME = 60


def to_srgb(image: Image.Image) -> tuple[Image.Image, str]:
    """The picture (L, LA, RGB, RGBA or CMYK) in sRGB, and a note if its colours were changed or could not be.

    A profile that is damaged, or of other colours than the picture's, changes nothing and is said.
    """
    profile = image.info.get("icc_profile")
    if not profile:
        return image, ""
    try:
        from PIL import ImageCms
        from PIL.ImageCms import PyCMSError
    except ImportError as error:
        return image, f"has a colour profile that this Pillow cannot read ({error}), so it is taken to be sRGB"
    try:
        if not isinstance(profile, bytes) or len(profile) > _LARGEST_PROFILE:
            raise ValueError(f"more than {_LARGEST_PROFILE:,} bytes")
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        mode = _MODES.get(source.profile.xcolor_space, "")
        colours = {"LA": "L", "RGBA": "RGB"}.get(image.mode, image.mode)
        if colours != mode and (colours, mode) != ("L", "RGB"):
            raise ValueError(f"it is for {source.profile.xcolor_space.strip()}, the picture is {colours}")
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode == "RGB" and _changes_nothing(transform):
            return image, ""
        converted = transform.apply(image.convert(mode))
    except (PyCMSError, OSError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        said = printable(str(error), _LONGEST_NAME) or type(error).__name__
        return image, f"has a colour profile that cannot be used ({said}), so it is taken to be sRGB"
    if image.mode in ("LA", "RGBA"):
        converted.putalpha(image.getchannel("A"))
    return converted, f"colours converted from {_name_of(source)} to sRGB"


def _changes_nothing(transform: Any) -> bool:
    """Whether a transform leaves a cube of 9x9x9 colours within 1 of 255, as one from sRGB itself does."""
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(27, 27, 3)
    after = np.asarray(transform.apply(Image.fromarray(cube)))
    return int(np.abs(after.astype(int) - cube).max()) <= 1


def _name_of(profile: Any) -> str:
    return printable(str(profile.profile.profile_description or ""), _LONGEST_NAME) or "its own profile"
