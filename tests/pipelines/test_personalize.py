from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from hyperdream_core.errors import (
    BaseMismatchError,
    Cancelled,
    ConfigError,
    OutputError,
    PromptError,
    ReferenceImageError,
)
from hyperdream_core.faces.prepared_faces import Faces, faces_of_crops
from hyperdream_core.formats.identity_file import read_identity
from hyperdream_core.formats.lora_file import read_lora
from hyperdream_core.models.hypernetwork import Hypernetwork, HypernetworkConfig
from hyperdream_core.pipelines.diffusers.diffusers_base import DiffusersBase
from hyperdream_core.pipelines.drawing.draw import DrawConfig, draw
from hyperdream_core.pipelines.drawing.subjects import Subject
from hyperdream_core.pipelines.personalize import Onlookers, PersonalizeConfig, PersonalizeResult, personalize
from hyperdream_core.pipelines.polishing.polish_config import PolishConfig
from hyperdream_core.pipelines.predictors.hypernetwork_predictor import HypernetworkPredictor
from hyperdream_core.pipelines.predictors.predict import neutral_identity, predict_identity
from hyperdream_core.pipelines.progress import Progress
from hyperdream_core.pipelines.results_folder import ResultsFolder

CONFIG = PersonalizeConfig(
    prompts=("a [V] face", "a [V] face, sad"),
    name="sofia",
    polish=PolishConfig(steps=2, rank=1, batch=1, crops=0),
    draw=DrawConfig(steps=1, guidance_scale=1.0, size=32),
)


@pytest.fixture(scope="module")
def predictor() -> HypernetworkPredictor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = {"kind": "conv", "channels": [8, 8, 8, 8], "width": 16, "image_size": 32}
        config = HypernetworkConfig(family="miniature", width=16, heads=2, image_encoder=encoder)
        return HypernetworkPredictor(Hypernetwork(config).train(False), "another", {})


def stopping(at: str, step: int) -> Onlookers:
    @contextmanager
    def stage(label: str) -> Iterator[Progress]:
        def progress(now: int, total: int) -> None:
            if label == at and now == step:
                raise Cancelled("enough")

        yield progress

    return Onlookers(stage=stage)


def run(
    base: DiffusersBase,
    predictor: HypernetworkPredictor | None,
    references: Tensor | Faces,
    folder: Path,
    **change: object,
) -> PersonalizeResult:
    watch = change.pop("watch", None)
    config = replace(CONFIG, **change)  # type: ignore[arg-type]
    faces = faces_of_crops(references) if isinstance(references, Tensor) else references
    return personalize(base, faces, ResultsFolder.open(folder), config, predictor, watch=watch)  # type: ignore[arg-type]


def test_the_whole_job_leaves_everything_it_promises(
    base: DiffusersBase, predictor: HypernetworkPredictor, references: Tensor, tmp_path: Path
) -> None:
    labels: list[str] = []

    @contextmanager
    def stage(label: str) -> Iterator[Progress]:
        labels.append(label)
        yield lambda step, total: None

    watch = Onlookers(stage=stage, judge=lambda pictures: torch.full((len(pictures),), 0.25))
    result = run(base, predictor, references, tmp_path / "out", watch=watch)
    assert [file.name for file in result.files] == [
        "sofia.safetensors",
        "sofia-lora.safetensors",
        "sofia-01.png",
        "sofia-02.png",
        "sofia-grid.png",
        "sofia-report.json",
    ]
    assert labels == ["polish", "draw, base", "draw, predicted", "draw, polished"]
    identity = read_identity(result.files[0])
    assert identity.rank == 2 and identity.made_by["method"] == "hypernetwork"
    assert read_lora(result.files[1])[0] == "miniature"
    with Image.open(result.files[2]) as picture:
        assert picture.size == (32, 32) and picture.text["prompt"] == "a sks face"  # type: ignore[attr-defined]
    report = json.loads(result.files[-1].read_text("utf-8"))
    assert report["likeness"] == {"base": 0.25, "predicted": 0.25, "polished": 0.25}
    assert report["prompts"] == ["a sks face", "a sks face, sad"] and len(report["losses"]) == 2
    assert report["files"]["sofia.safetensors"]["bytes"] == result.files[0].stat().st_size
    assert report["peak_memory_bytes"]["process"] > 1e8 and set(report["seconds"]) >= {"predict", "polish", "draw"}
    assert re.search(
        r"another checkpoint of this family \(.+, another\) than the one at work \([0-9a-f]{8}\)",
        report["notes"][0],
    )
    assert not report["cancelled"]
    assert result.pictures.shape == (2, 3, 32, 32)


def test_without_a_predictor_it_polishes_from_nothing(base: DiffusersBase, references: Tensor, tmp_path: Path) -> None:
    result = run(base, None, references, tmp_path)
    assert result.identity.rank == 1 and "predict" not in result.report["seconds"]


def test_prepared_references_count_by_their_weights(
    base: DiffusersBase, predictor: HypernetworkPredictor, references: Tensor, tmp_path: Path
) -> None:
    faces = faces_of_crops(references)
    faces = replace(faces, prepared=replace(faces.prepared, weights=(1.0, 0.25), detector="a detector of tests"))
    watch = Onlookers(judge=lambda pictures: torch.full((len(pictures),), torch.nan), judged="measured by tests")
    result = run(base, predictor, faces, tmp_path, polish=PolishConfig(steps=0), watch=watch)
    expected = predict_identity(predictor.network, faces.at(predictor.wants.size), weights=(1.0, 0.25))
    for name, coefficients in expected.coefficients.items():
        assert torch.equal(result.identity.coefficients[name].up, coefficients.up)
    assert result.report["faces"]["detector"] == "a detector of tests"
    # Likeness that cannot be measured is no failure, and no number either.
    assert result.report["likeness"] == {}
    assert result.report["likeness_by"] == "not measured: no face was found in what was drawn"


def test_without_steps_the_prediction_is_the_result(
    base: DiffusersBase, predictor: HypernetworkPredictor, references: Tensor, tmp_path: Path
) -> None:
    result = run(base, predictor, references, tmp_path, polish=PolishConfig(steps=0))
    assert result.identity.rank == 1 and "polish" not in result.report["seconds"]
    with pytest.raises(ConfigError, match="no predictor for the miniature and the polishing steps are 0"):
        run(base, None, references, tmp_path, polish=PolishConfig(steps=0))


@pytest.mark.parametrize(("at", "step", "losses"), [("polish", 1, 1), ("draw, base", 0, 2), ("draw, polished", 0, 2)])
def test_stopping_keeps_what_is_finished(
    base: DiffusersBase, references: Tensor, tmp_path: Path, at: str, step: int, losses: int
) -> None:
    result = run(base, None, references, tmp_path, watch=stopping(at, step))
    assert result.cancelled and result.report["cancelled"] and len(result.report["losses"]) == losses
    assert [file.name for file in result.files] == ["sofia.safetensors", "sofia-lora.safetensors", "sofia-report.json"]
    assert read_identity(result.files[0]).rank == 1


def test_stopping_before_the_polish_keeps_the_prediction(
    base: DiffusersBase, predictor: HypernetworkPredictor, references: Tensor, tmp_path: Path
) -> None:
    @contextmanager
    def stage(label: str) -> Iterator[Progress]:
        raise KeyboardInterrupt
        yield

    result = run(base, predictor, references, tmp_path, watch=Onlookers(stage=stage))
    assert result.cancelled and read_identity(result.files[0]).rank == result.identity.rank == 1


def test_stopping_before_the_first_step_keeps_an_earlier_result(
    base: DiffusersBase, predictor: HypernetworkPredictor, references: Tensor, tmp_path: Path
) -> None:
    (tmp_path / "sofia.safetensors").write_bytes(b"polished for an hour")
    with pytest.raises(Cancelled, match=r"before the first step of polishing; .*sofia.safetensors, made earlier"):
        run(base, predictor, references, tmp_path, watch=stopping("polish", 0))
    with pytest.raises(Cancelled, match="before the first step, so there is nothing to keep yet"):
        run(base, None, references, tmp_path, watch=stopping("polish", 0))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [
        ("sofia.safetensors", b"polished for an hour")
    ]


def test_a_result_that_cannot_be_written_at_the_end_is_kept_elsewhere(
    base: DiffusersBase, references: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hyperdream_core.pipelines import personalize as module

    def full(path: Path, *rest: object, **options: object) -> None:
        if path.parent == tmp_path:
            raise OutputError(f"{path}: cannot be written (No space left on device)")
        path.write_bytes(b"identity")

    monkeypatch.setattr(module, "write_identity", full)
    with pytest.raises(OutputError, match=r"No space left.*what could not be written there is in ") as refused:
        run(base, None, references, tmp_path)
    rescue = Path(str(refused.value).rpartition(" ")[2])
    assert (rescue / "sofia.safetensors").read_bytes() == b"identity"
    assert (tmp_path / "sofia-grid.png").exists() and (tmp_path / "sofia-report.json").exists()


def test_what_would_fail_later_is_refused_first(
    base: DiffusersBase, predictor: HypernetworkPredictor, references: Tensor, tmp_path: Path
) -> None:
    with pytest.raises(PromptError, match="write 'a sks face, sad'"):
        run(base, predictor, references, tmp_path, prompts=("a face, sad",))
    with pytest.raises(ReferenceImageError, match="at least one picture"):
        run(base, predictor, references[:0], tmp_path)
    foreign = HypernetworkPredictor(Hypernetwork(HypernetworkConfig(family="sd15", width=4, heads=1)), "", {})
    with pytest.raises(BaseMismatchError, match="trained for 'sd15', but the base is 'miniature'"):
        run(base, foreign, references, tmp_path)
    assert not list(tmp_path.iterdir())


def test_guidance_away_from_a_neutral_reference_asks_the_predictor_for_it(
    base: DiffusersBase, predictor: HypernetworkPredictor, references: Tensor, tmp_path: Path
) -> None:
    away = DrawConfig(steps=1, guidance="reference-null", guidance_scale=2.0, size=32)
    settings = {"polish": PolishConfig(steps=0), "prompts": ("a [V] face",)}
    result = run(base, predictor, references, tmp_path, draw=away, **settings)
    subject = Subject(adapter=result.identity, neutral=neutral_identity(predictor.network, predictor.wants.size))
    expected = draw(base, ["a sks face"], subject, away)
    torch.testing.assert_close(result.pictures, expected)
    with pytest.raises(ConfigError, match="says of a grey picture, and there is no predictor"):
        run(base, None, references, tmp_path, draw=away)


def test_an_identifier_is_inserted_if_asked(base: DiffusersBase, references: Tensor, tmp_path: Path) -> None:
    result = run(base, None, references, tmp_path, prompts=("at the beach",), insert_identifier=True)
    assert result.report["prompts"] == ["a sks face, at the beach"]


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden"])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a name"):
        PersonalizeConfig(name=name)


def test_no_prompts_are_refused() -> None:
    with pytest.raises(ConfigError, match="prompts is empty"):
        PersonalizeConfig(prompts=())
