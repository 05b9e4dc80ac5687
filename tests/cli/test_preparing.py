"""The command `prepare`, and how the other commands find faces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def photo(astronaut: Image.Image, tmp_path: Path) -> Path:
    astronaut.crop((100, 20, 340, 260)).save(tmp_path / "anna.png")
    return tmp_path / "anna.png"


def test_prepare_writes_crop_and_preview_and_reports_the_face(run: Callable, photo: Path, tmp_path: Path) -> None:
    words = ("prepare", photo, "--detector", "cascade", "--size", "64", "--out", tmp_path / "out")
    ran = run(*words, "--json")
    assert ran.code == 0, ran.error
    (entry,) = ran.json["pictures"]
    (face,) = entry["faces"]
    assert face["number"] == 1 and face["chosen"] and face["score"] > 0.5 and entry["remarks"] == []
    with Image.open(entry["crop"]) as crop, Image.open(entry["preview"]) as preview:
        assert crop.size == (64, 64) and preview.size == (240, 240)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"01-anna-face.png", "01-anna-preview.png"}
    assert ran.json["detector"] == "scikit-image's frontal cascade"
    text = run(*words).out
    assert f"{photo}: 1 face, used: face 1" in text and "  quality 1.00: good" in text


def test_prepare_stops_skips_or_goes_on_without_a_face(
    run: Callable, refused: Callable, picture: Path, photo: Path, tmp_path: Path
) -> None:
    words = ("prepare", picture, photo, "--detector", "cascade", "--size", "64", "--out", tmp_path / "out")
    assert "reference 1 of 2 (sofia.png, 40x48 px) shows no face" in refused(*words)
    ran = run(*words, "--on-no-face", "skip", "--json")
    assert [one["used"] for one in ran.json["pictures"]] == ["nothing", "face 1"] and "; skipped" in ran.error


def test_the_miniature_takes_whole_pictures_unless_told_otherwise(
    run: Callable, refused: Callable, picture: Path, predictor: Path, tmp_path: Path
) -> None:
    words = ("predict", picture, "--predictor", predictor, "--out", tmp_path / "x.safetensors")
    ran = run(*words, "--json")
    assert ran.json["faces"]["detector"].startswith("no detector") and ran.json["references"] == 1
    assert "shows no face" in refused(*words, "--detector", "cascade")


def test_a_detector_asked_for_and_missing_is_refused(refused: Callable, picture: Path, tmp_path: Path) -> None:
    said = refused(
        "prepare", picture, "--detector", "insightface", "--face-models", tmp_path / "gone", "--out", tmp_path
    )
    assert str(tmp_path / "gone") in said and "det_10g.onnx" in said


def test_sizes_out_of_range_are_refused(refused: Callable, picture: Path, tmp_path: Path) -> None:
    assert "size must be a multiple of 8" in refused("prepare", picture, "--size", "33", "--out", tmp_path)


def test_other_subjects_than_people_are_not_searched_for_faces() -> None:
    from hyperdream_core.cli.entry import build_parser
    from hyperdream_core.cli.reference_flags import References

    def detector(*words: str, family: str = "sd15", noun: str = "face") -> str:
        line = ["prepare", "a.png", *words]
        return References.of(build_parser(line).parse_args(line)).config_for(family, noun)[0].detector

    assert detector() == "auto" and detector(noun="Woman") == "auto"
    assert detector(noun="dog") == detector(family="miniature") == "already-cropped"
    assert detector("--detector", "auto", family="miniature", noun="dog") == "auto"


def test_likeness_is_measured_by_the_recogniser_that_was_named_and_never_a_failure(
    run: Callable, picture: Path, base_folder: Path, predictor: Path, tmp_path: Path
) -> None:
    from tests.tiny_onnx import write_recognizer

    recognizer = write_recognizer(tmp_path / "buffalo_l" / "w600k_r50.onnx")
    where = ("--base", base_folder, "--predictor", predictor, "--out", tmp_path / "out", "--device", "cpu")
    few = ("--size", "32", "--polish-steps", "0", "--draw-steps", "1", "--guidance-scale", "1")
    ran = run("personalize", picture, *where, *few, "--prompt", "a [V] face", "--recognizer", recognizer, "--json")
    assert ran.code == 0, ran.error
    assert ran.json["likeness"] == {} and ran.json["likeness_by"].startswith("not measured: no face was found")
