from __future__ import annotations

import signal
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.identities import make_identity

if TYPE_CHECKING:
    from PIL import Image

    from hyperdream_core.identity import Identity


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--inputs", type=int, default=5000, help="hostile inputs of `pytest tests/fuzz -m slow`, in all")
    parser.addoption("--first-seed", type=int, default=0, help="seed of each reader's first hostile input")


# Whoever starts the tests in the background may have switched Ctrl-C off, which some of them try.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def astronaut() -> Image.Image:
    """512x512 px with one face around (222, 120), 100 px wide; NASA, public domain; comes with scikit-image."""
    import skimage
    from PIL import Image

    with Image.open(Path(skimage.__file__).parent / "data" / "astronaut.png") as image:
        return image.convert("RGB")


@pytest.fixture(scope="session")
def group_photograph() -> Image.Image:
    """1280x886 px with six faces; comes with the package insightface."""
    from PIL import Image

    package = find_spec("insightface")
    file = Path(package.origin).parent / "data" / "images" / "t1.jpg" if package and package.origin else None
    if file is None or not file.is_file():
        pytest.skip("the group photograph comes with the package insightface, which is not installed")
    with Image.open(file) as image:
        return image.convert("RGB")


@pytest.fixture
def fresh_identity() -> Callable[..., Identity]:
    return make_identity
