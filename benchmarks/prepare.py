"""Faces found, missed and invented per detector, and seconds to prepare a photograph of 12 megapixels.

The pictures come with ordinary packages: scikit-image's astronaut (one face) as it is, turned, mirrored, reduced to a
face of 40 px and as a close-up; ten of its pictures that show no face; and, where the package insightface is installed,
its group photograph of six people. The insightface detector runs where one of its packs lies in its own folder or in
one named with --face-models. Seconds are of the wall clock and of the CPU; the latter do not suffer from other jobs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import skimage
from PIL import Image

from hyperdream_core.errors import HyperDreamError
from hyperdream_core.faces.detectors import open_detector
from hyperdream_core.faces.face import Face, FaceDetector
from hyperdream_core.faces.prepare import PrepareConfig, prepare_references
from hyperdream_core.pictures.files import picture_from_pil, read_picture

SKIMAGE = Path(skimage.__file__).parent / "data"
FACELESS = ("chelsea.png", "coffee.png", "motorcycle_left.png", "camera.png", "ihc.png", "hubble_deep_field.jpg",
            "brick.png", "grass.png", "gravel.png", "page.png")  # fmt: skip
# Centres of the six faces in insightface's group photograph, as shares of its sides; read off the picture.
GROUP = ((0.085, 0.37), (0.26, 0.22), (0.41, 0.385), (0.62, 0.47), (0.76, 0.145), (0.92, 0.38))
ASTRONAUT = (0.436, 0.24)


def cases() -> Iterator[tuple[str, Image.Image, tuple[tuple[float, float], ...]]]:
    """Name, picture and the centres of its faces as shares of its sides."""
    x, y = ASTRONAUT
    turn = Image.Transpose
    one = Image.open(SKIMAGE / "astronaut.png").convert("RGB")
    yield "astronaut", one, (ASTRONAUT,)
    yield "turned by 90", one.transpose(turn.ROTATE_90), ((y, 1 - x),)
    yield "turned by 180", one.transpose(turn.ROTATE_180), ((1 - x, 1 - y),)
    yield "turned by 270", one.transpose(turn.ROTATE_270), ((1 - y, x),)
    yield "mirrored", one.transpose(turn.FLIP_LEFT_RIGHT), ((1 - x, y),)
    yield "face of 40 px", one.resize((213, 213), Image.Resampling.BICUBIC), (ASTRONAUT,)
    yield "close-up", one.crop((175, 55, 275, 165)), ((0.48, 0.61),)
    package = find_spec("insightface")
    group = Path(package.origin).parent / "data" / "images" / "t1.jpg" if package and package.origin else Path("none")
    if group.is_file():
        yield "group of six", Image.open(group).convert("RGB"), GROUP
    for name in FACELESS:
        yield name, Image.open(SKIMAGE / name).convert("RGB"), ()


def count(detector: FaceDetector, image: Image.Image, centres: tuple[tuple[float, float], ...]) -> tuple[int, int, int]:
    """Faces found, missed and invented in one picture."""
    search = detector.find(picture_from_pil(image, "picture").pixels, 0.5)
    sure = [face for face in search.faces if face.score >= 0.5]
    wanted = [(x * image.width, y * image.height) for x, y in centres]
    hit = {row for row, place in enumerate(wanted) if any(holds(face, place) for face in sure)}
    return len(hit), len(wanted) - len(hit), sum(not any(holds(face, place) for place in wanted) for face in sure)


def holds(face: Face, place: tuple[float, float]) -> bool:
    left, top, right, bottom = face.box
    return left < place[0] < right and top < place[1] < bottom


def seconds(path: Path, config: PrepareConfig) -> tuple[float, float]:
    """Wall-clock and CPU seconds from file to prepared reference."""
    wall, cpu = time.perf_counter(), time.process_time()
    prepare_references([read_picture(path)], 512, config)
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description="Faces found, missed and invented, and seconds for 12 megapixels.")
    parser.add_argument("--rounds", type=int, default=5, help="of the timing (default: 5)")
    parser.add_argument("--face-models", type=Path, nargs="*", default=[], help="folders with insightface's packs")
    arguments = parser.parse_args()
    for name in ("cascade", "insightface"):
        try:
            detector = open_detector(name, arguments.face_models)[0]  # type: ignore[arg-type]
        except HyperDreamError as error:
            print(f"{name}: not measured: {error}")
            continue
        print(f"{detector.about}\n{'picture':24}{'found':>8}{'missed':>8}{'invented':>10}")
        total = [0, 0, 0]
        for label, image, centres in cases():
            counts = count(detector, image, centres)
            total = [before + more for before, more in zip(total, counts, strict=True)]
            print(f"{label:24}{counts[0]:8}{counts[1]:8}{counts[2]:10}", flush=True)
        print(f"{'all':24}{total[0]:8}{total[1]:8}{total[2]:10}")
        with tempfile.TemporaryDirectory() as folder:
            for label, source in (("a face", "astronaut.png"), ("no face", "coffee.png")):
                path = Path(folder) / "photo.jpg"
                whole = Image.open(SKIMAGE / source).convert("RGB")
                # Cut to 4:3 and enlarged: stretched faces are no faces.
                cut = whole.crop((0, 0, whole.width, whole.width * 3 // 4))
                cut.resize((4000, 3000), Image.Resampling.BICUBIC).save(path, quality=90)
                config = PrepareConfig(
                    detector=name, face_models=tuple(arguments.face_models), on_no_face="whole-picture"
                )  # type: ignore[arg-type]
                rounds = [seconds(path, config) for _ in range(arguments.rounds)]
                wall, cpu = (median(column) for column in zip(*rounds, strict=True))
                print(f"JPEG of 4000x3000 px with {label}: {wall:.2f} s, of which CPU {cpu:.2f} s")


if __name__ == "__main__":
    main()
