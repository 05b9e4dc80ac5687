"""Numbers that are none never leave a pipeline as a picture, an identity or a figure, and the cause is named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperdream_core.errors import ConfigError, OutputError
from hyperdream_core.faces.face import Face
from hyperdream_core.faces.likeness import Likeness
from hyperdream_core.faces.prepared_faces import faces_of_crops
from hyperdream_core.pictures.files import save_image, to_pil
from hyperdream_core.pipelines.diffusers.diffusers_base import DiffusersBase
from hyperdream_core.pipelines.drawing.draw import DrawConfig, draw
from hyperdream_core.pipelines.polishing.polish import polish
from hyperdream_core.pipelines.polishing.polish_config import PolishConfig
from tests.identities import make_identity

SMALL = DrawConfig(steps=2, size=32, guidance_scale=1.0)
SHORT = PolishConfig(steps=1, batch=1, rank=1, crops=0)


@contextmanager
def broken(network: nn.Module, value: float = float("nan")) -> Iterator[None]:
    """One number of the last weight is no number."""
    weight = list(network.parameters())[-1]
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.view(-1)[0] = value
        yield
    finally:
        with torch.no_grad():
            weight.copy_(before)


def parts(base: DiffusersBase) -> dict[str, nn.Module]:
    return {"UNet": base.unet, "text encoder": base.text_encoders[0], "VAE": base.vae.decoder}


@pytest.mark.parametrize(
    ("part", "words"),
    [("UNet", "the base's own answer"), ("text encoder", "the text encoder's answer"), ("VAE", "what the VAE made")],
)
def test_a_base_with_one_nan_draws_nothing_and_the_part_is_named(base: DiffusersBase, part: str, words: str) -> None:
    with broken(parts(base)[part]), pytest.raises(OutputError, match=f"{words}.*not finite.*checkpoint again"):
        draw(base, ["a face"], None, SMALL)
    assert draw(base, ["a face"], None, SMALL).isfinite().all()


def test_a_change_that_overflows_is_named_and_not_the_base(base: DiffusersBase) -> None:
    with pytest.raises(OutputError, match=r"what was drawn holds .* smaller strength"):
        draw(base, ["a sks face"], make_identity("miniature", scale=1e30), SMALL)


@pytest.mark.parametrize(
    ("part", "words"), [("UNet", "the base's own answer"), ("text encoder", "the text encoder's answer")]
)
def test_polishing_blames_a_broken_base_and_not_the_learning_rate(
    base: DiffusersBase, references: Tensor, part: str, words: str
) -> None:
    with broken(parts(base)[part]), pytest.raises(OutputError, match=f"{words}.*not finite"):
        polish(base, references, config=SHORT)


def test_polishing_blames_a_vae_that_gives_no_numbers(base: DiffusersBase, references: Tensor) -> None:
    with broken(base.vae.encoder, float("inf")), pytest.raises(OutputError, match="from the VAE,"):
        polish(base, references, config=SHORT)


def test_polishing_that_diverges_says_so_at_once(base: DiffusersBase, references: Tensor) -> None:
    steps = list[int]()
    config = PolishConfig(steps=50, batch=1, rank=1, crops=0, preserve=0)
    start = make_identity("miniature", scale=1e30)
    with pytest.raises(ConfigError, match="diverged"):
        polish(base, references, start, config, lambda step, _: steps.append(step))
    assert max(steps) <= 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_picture_file_is_written_from_what_is_no_number(value: float, tmp_path: Path) -> None:
    picture = torch.rand(3, 8, 8)
    picture[1, 2, 3] = value
    with pytest.raises(OutputError, match="the picture holds 1 of 192 numbers"):
        save_image(tmp_path / "a.png", picture)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OutputError, match=r"shape \(1, 8, 8\)"):
        to_pil(torch.rand(1, 8, 8))


def test_a_recogniser_that_sees_no_numbers_measures_nothing() -> None:
    class Broken:
        about, needs_landmarks, side, same_person = "a broken recogniser", False, 32, 0.4

        def embed(self, picture: Tensor, face: Face) -> Tensor:
            return torch.full((8,), float("nan"))

    broken_one: Any = Broken()
    faces = faces_of_crops(torch.rand(1, 3, 32, 32))
    with pytest.raises(OutputError, match="what a broken recogniser sees holds 8 of 8"):
        Likeness(faces, broken_one)
