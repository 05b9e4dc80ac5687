"""The portrait that the templates open with, put where Load Image looks for pictures."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from ...hyperdream_core.bundled import bundled_examples
from ...hyperdream_core.errors import FileFormatError

EXAMPLE_PICTURE = "hyperdream-portrait.png"


def offer_example_picture(folder: Path) -> None:
    """Copy the bundled portrait into the host's input folder, unless something of that name is there."""
    target = folder / EXAMPLE_PICTURE
    if target.exists():
        return
    try:
        shutil.copyfile(bundled_examples() / "portrait.png", target)
    except (OSError, FileFormatError) as error:
        # The nodes work without it; only the templates ask for another picture.
        logging.warning("HyperDream: the templates' portrait could not be put into %s (%s)", folder, error)
