"""How the files beside this one were made by 0.1.0 with the miniature of 0.1.0; kept to be read.

    OMP_NUM_THREADS=1 python -m tests.golden.miniature.make_golden    (from the root of a checkout)

Made anew only together with the shipped weights, and by code that has passed these tests with the old ones: otherwise
they would say of whatever is drawn today that it is right. Ours are of 0.1.0 and its weights.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hyperdream_core.cli import main as hyperdream
from tests.golden.miniature.test_pictures import DRAWN, FILES, IDENTITY, PERSONALIZE, SAMPLE


def main() -> None:
    FILES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        assert hyperdream([*PERSONALIZE, "--out", folder]) == 0
        shutil.copyfile(out / "portrait.safetensors", IDENTITY)
        shutil.copyfile(out / "portrait-01.png", FILES / "personalized.png")
        for name, flags in SAMPLE.items():
            assert hyperdream(["sample", "--identity", str(IDENTITY), *DRAWN, *flags, "--out", str(out / name)]) == 0
            (picture,) = (out / name).glob("*.png")
            shutil.copyfile(picture, FILES / f"{name}.png")
    print("Then node.png, tab.png and their like are what the tests of these leave in their temporary folders.")


if __name__ == "__main__":
    main()
