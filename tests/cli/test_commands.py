"""Every command on a tiny random base: what it writes, prints and says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from hyperdream_core.cli.console import Console
from hyperdream_core.formats.file_names import check_name
from hyperdream_core.formats.identity_file import read_identity
from hyperdream_core.formats.lora_file import read_lora
from hyperdream_core.identity import Identity
from hyperdream_core.miniature.world.captions import ATTRIBUTES

TINY = ("--size", "32", "--device", "cpu")
POLISH = ("--polish-steps", "2", "--rank", "2", "--polish-batch", "1", "--crops", "0", "--caption", "none")
DRAW = ("--draw-steps", "1", "--guidance-scale", "1")


@pytest.fixture
def job(base_folder: Path, predictor: Path, picture: Path, tmp_path: Path) -> tuple[object, ...]:
    """The main command at its smallest, without prompts."""
    where = ("--base", base_folder, "--predictor", predictor, "--out", tmp_path / "out")
    return ("personalize", picture, *where, *TINY, *POLISH, *DRAW)


@pytest.mark.parametrize(("said", "used"), [("smiling, photo", "smiling, photo"), ("auto", None), ("none", "")])
def test_what_the_picture_shows_is_said_or_read_off_it(
    run: Callable, base_folder: Path, picture: Path, tmp_path: Path, said: str, used: str | None
) -> None:
    out = tmp_path / "identity.safetensors"
    steps = ("--steps", "1", "--rank", "1", "--batch", "1", "--crops", "0")
    ran = run("polish", picture, "--base", base_folder, "--out", out, *TINY, *steps, "--caption", said, "--json")
    assert ran.code == 0, ran.error
    (caption,) = ran.json["captions"] or [""]
    assert caption == used if used is not None else {"", *caption.split(", ")} <= {"", *chain(*ATTRIBUTES.values())}


def test_a_caption_for_each_picture_is_expected(refused: Callable, job: tuple[object, ...]) -> None:
    assert "2 captions for 1 pictures" in refused(*job, "--caption", "sad", "--prompt", "a [V] face")


def test_personalize_writes_everything_into_one_folder(run: Callable, job: tuple[object, ...], tmp_path: Path) -> None:
    ran = run(*job, "--json", "--prompt", "a [V] face", "a [V] face, sad", "--seed", "4", "--strength", "0.5")
    assert ran.code == 0, ran.error
    written = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {"sofia-01.png", "sofia-02.png", "sofia-grid.png"}
    assert written == {"sofia.safetensors", "sofia-lora.safetensors", "sofia-report.json", *pictures}
    assert read_identity(tmp_path / "out" / "sofia.safetensors").rank == 3
    assert ran.json["prompts"] == ["a sks face", "a sks face, sad"]
    config = ran.json["config"]
    assert (config["polish"]["seed"], config["draw"]["seed"], config["draw"]["strength"]) == (4, 4, 0.5)
    assert json.loads((tmp_path / "out" / "sofia-report.json").read_text())["prompts"] == ran.json["prompts"]


def test_stopping_the_polish_keeps_the_best_so_far(
    run: Callable, job: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Console, "progress", stopping_at_step_1)
    ran = run(*job, "--prompt", "a [V] face")
    assert ran.code == 130 and "kept in" in ran.error
    assert read_identity(tmp_path / "out" / "sofia.safetensors").rank == 3


def test_the_parts_make_one_chain(
    run: Callable, base_folder: Path, predictor: Path, picture: Path, tmp_path: Path
) -> None:
    predicted, polished, lora = (tmp_path / f"{name}.safetensors" for name in ("predicted", "polished", "lora"))
    ran = run("predict", picture, "--predictor", predictor, "--out", predicted)
    assert ran.code == 0 and str(predicted) in ran.out, ran.error
    steps = ("--steps", "1", "--rank", "2", "--batch", "1", "--crops", "0")
    ran = run("polish", picture, "--start", predicted, "--base", base_folder, "--out", polished, *TINY, *steps)
    assert ran.code == 0 and read_identity(polished).rank == 3, ran.error
    ran = run("export", polished, "--out", lora, "--dialect", "diffusers", "--preview", picture)
    assert ran.code == 0 and read_lora(lora)[0] == "miniature", ran.error
    ran = run("inspect", "--json", predicted, predictor, lora, base_folder, picture)
    kinds = [report["kind"] for report in ran.json["files"]]
    assert ran.code == 0 and kinds == ["identity", "predictor", "LoRA", "base folder", "picture"]


@pytest.mark.parametrize("adapter", ["identity", "lora", "nothing"])
def test_draw_takes_with_whatever_there_is(
    run: Callable, adapter: str, base_folder: Path, identity: Path, tmp_path: Path
) -> None:
    files = {"identity": identity, "lora": tmp_path / "sofia-lora.safetensors"}
    if adapter == "lora":
        assert run("export", identity).code == 0
    words = ("--identity", files[adapter]) if adapter in files else ()
    prompt = "a face, sad" if adapter == "nothing" else "a [V] face, sad"
    out = tmp_path / "out"
    ran = run("draw", "--prompt", prompt, "--count", "2", "--base", base_folder, "--out", out, *words, *TINY,
              "--steps", "1", "--json")  # fmt: skip
    assert ran.code == 0, ran.error
    assert [Path(one["file"]).exists() for one in ran.json["pictures"]] == [True, True]
    with Image.open(ran.json["pictures"][1]["file"]) as made:
        assert made.size == (32, 32) and made.text == {"prompt": ran.json["pictures"][1]["prompt"], "seed": "1"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("adapter", ["identity", "lora"])
def test_draw_mixes_base_and_adapter(
    run: Callable, adapter: str, base_folder: Path, identity: Path, tmp_path: Path
) -> None:
    files = {"identity": identity, "lora": tmp_path / "sofia-lora.safetensors"}
    assert run("export", identity).code == 0
    words = ("draw", "--base", base_folder, *TINY, "--steps", "2", "--prompt")

    def drawn(name: str, *flags: object) -> bytes:
        ran = run(*words, *flags, "--out", tmp_path / name, "--json")
        assert ran.code == 0, ran.error
        return Image.open(ran.json["pictures"][0]["file"]).tobytes()

    hybrid = ("--identity", files[adapter], "--guidance", "hybrid", "--base-scale", "3")
    hybrid = (*hybrid, "--schedule", "0-0.5:1, 0.5-1:0.6")
    base = drawn("base", "a face, sad", "--guidance-scale", "3")
    assert drawn("zero", "a [V] face, sad", *hybrid, "--subject-scale", "0") == base
    assert drawn("two", "a [V] face, sad", *hybrid, "--subject-scale", "2") != base


@pytest.fixture
def foreign(run: Callable, identity: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A LoRA as another trainer writes it, which states the given trigger phrase or, of an empty one, none."""

    def foreign(phrase: str) -> Path:
        lora = tmp_path / "lora.safetensors"
        assert run("export", identity, "--out", lora).code == 0
        metadata = {"ss_network_module": "networks.lora"} | ({"modelspec.trigger_phrase": phrase} if phrase else {})
        save_file(load_file(lora), tmp_path / "foreign.safetensors", metadata)
        return tmp_path / "foreign.safetensors"

    return foreign


@pytest.mark.parametrize(
    ("phrase", "flags", "prompt", "drawn", "said"),
    [
        ("ohwx, woman", (), "a [V], sad", "a ohwx, woman, sad", "trigger phrase is 'ohwx, woman'"),
        ("ohwx, woman", (), "a face, sad", "a face, sad", "trigger phrase is 'ohwx, woman'"),
        ("ohwx, woman", ("--identifier", "ohwx"), "a [V] face", "a ohwx face", ""),
        ("", (), "a face, sad", "a face, sad", "states no trigger word; the prompts are drawn as they are written"),
        ("", ("--identifier", "ohwx"), "a [V] face", "a ohwx face", ""),
    ],
)
def test_a_strangers_trigger_words_are_taken_as_they_stand(
    run: Callable, foreign: Callable[[str], Path], base_folder: Path, tmp_path: Path,
    phrase: str, flags: tuple[str, ...], prompt: str, drawn: str, said: str,
) -> None:  # fmt: skip
    words = ("--base", base_folder, *TINY, "--steps", "1", "--out", tmp_path / "out", "--allow-unknown-words")
    ran = run("draw", "--identity", foreign(phrase), "--prompt", prompt, *words, *flags, "--json")
    assert ran.code == 0, ran.error
    assert ran.json["pictures"][0]["prompt"] == drawn
    assert said in ran.error and (said or "trigger" not in ran.error)


def test_a_trigger_word_that_nobody_has_named_is_not_invented(
    refused: Callable, foreign: Callable[[str], Path], base_folder: Path, tmp_path: Path
) -> None:
    words = ("--base", base_folder, "--out", tmp_path / "out")
    said = refused("draw", "--identity", foreign(""), "--prompt", "a [v] face", *words)
    assert "'a [v] face' says [V]" in said and "name it with --identifier" in said


def test_a_sweep_writes_table_figures_and_picture(
    run: Callable, refused: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hyperdream_core.miniature.trial import sweep
    from hyperdream_core.miniature.trial import trial as evaluation

    def fake(config: evaluation.TrialConfig, curves: list[str], *_: object) -> sweep.SweepReport:
        figures = {"curves": curves, "methods": list(config.methods), "people": config.people}
        return sweep.SweepReport((), "| method |", figures, Image.new("RGB", (8, 8)))

    monkeypatch.setattr(sweep, "sweep", fake)
    words = ("evaluate", "--people", "7", "--out", tmp_path)
    assert run(*words, "--sweep", "hybrid").out == "| method |\n"
    assert {path.name for path in tmp_path.iterdir()} == {"sweep.md", "sweep.json", "sweep.png"}
    expected = {"curves": ["hybrid"], "methods": list(sweep.SWEEP_METHODS), "people": 7}
    assert json.loads((tmp_path / "sweep.json").read_text()) == expected
    ran = run(*words, "--sweep", "--methods", "prediction", "--json").json
    assert (ran["curves"], ran["methods"]) == ([], ["prediction"])
    assert "add --out DIR" in refused("evaluate", "--sweep")


def test_stopping_polish_keeps_the_best_so_far(
    run: Callable, base_folder: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Console, "progress", stopping_at_step_1)
    out = tmp_path / "identity.safetensors"
    ran = run("polish", picture, "--base", base_folder, "--out", out, *TINY, "--steps", "3", "--batch", "1")
    assert ran.code == 130 and "stopped after 1 of 3 steps" in ran.error and str(out) in ran.error
    assert read_identity(out).rank == 4


def test_a_disk_that_fills_up_does_not_lose_the_result(
    refused: Callable, picture: Path, predictor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hyperdream_core.errors import OutputError
    from hyperdream_core.formats import identity_file as adapter_file

    written = adapter_file.write_identity

    def write(path: Path, identity: Identity) -> None:
        if path.parent == tmp_path:
            raise OutputError(f"{path}: cannot be written (No space left on device)")
        written(path, identity)

    monkeypatch.setattr(adapter_file, "write_identity", write)
    out = tmp_path / "identity.safetensors"
    out.write_bytes(b"earlier")
    said = refused("predict", picture, "--predictor", predictor, "--out", out)
    kept = Path(said.rpartition("(kept: ")[2].removesuffix(")"))
    assert "No space left" in said and read_identity(kept).rank == 1 and out.read_bytes() == b"earlier"


def test_render_writes_captioned_portraits(run: Callable, tmp_path: Path) -> None:
    words = ("--people", "2", "--size", "32", "--caption", "smiling, wearing a hat", "--out", tmp_path, "--json")
    first, second = (run("miniature", "render", *words, "--seed", seed).json["pictures"] for seed in (1, 1))
    assert first == second and len(first) == 2
    assert all("smiling, wearing a hat" in one["caption"] for one in first)
    with Image.open(first[0]["file"]) as made:
        assert made.size == (32, 32) and made.text["caption"] == first[0]["caption"]  # type: ignore[attr-defined]


def test_render_names_what_it_cannot_draw(refused: Callable, tmp_path: Path) -> None:
    said = refused("miniature", "render", "--caption", "juggling", "--out", tmp_path / "out")
    assert "'juggling'" in said and "wearing a hat" in said


def test_render_obeys_the_dials_of_the_view(run: Callable, refused: Callable, tmp_path: Path) -> None:
    def made(*flags: str) -> bytes:
        words = ("--people", "1", "--size", "32", "--out", tmp_path / "-".join(("out", *flags)), "--json")
        (picture,) = run("miniature", "render", *words, *flags).json["pictures"]
        return Image.open(picture["file"]).tobytes()

    plain = made()
    for dial, value in (("turn", "1"), ("tilt", "20"), ("zoom", "1.3"), ("light", "-1"), ("occlusion", "0.4")):
        assert made(f"--{dial}", value) != plain, dial
    assert "turn must lie in -1..1, got 3" in refused("miniature", "render", "--turn", "3", "--out", tmp_path / "out")


def test_evaluate_prints_the_table_and_keeps_the_figures(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hyperdream_core.miniature.trial import trial as evaluation

    def evaluate(config: evaluation.TrialConfig, *_: object, **__: object) -> evaluation.EvaluationReport:
        return evaluation.EvaluationReport((), "| method |", {"rows": {}, "people": config.people})

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    assert run("evaluate", "--people", "7", "--out", tmp_path).out == "| method |\n"
    assert json.loads((tmp_path / "figures.json").read_text())["people"] == 7
    assert run("evaluate", "--people", "7", "--json").json == {"table": "| method |", "rows": {}, "people": 7}


def test_build_takes_toy_sizes_a_file_and_flags_in_that_order(tmp_path: Path) -> None:
    from hyperdream_core.cli.commands.miniature_build import _recipe_config
    from hyperdream_core.cli.entry import build_parser
    from hyperdream_core.miniature.recipe.materials import quick

    (tmp_path / "recipe.json").write_text('{"pets": 5, "contexts": 3, "base": {"steps": 9}}')
    words = ["miniature", "build", "--quick", "--config", str(tmp_path / "recipe.json"), "--contexts", "4"]
    config = _recipe_config(build_parser(words).parse_args(words))
    assert (config.processes, config.pets, config.contexts, config.base.steps) == (1, 5, 4, 9)
    assert config.base.learning_rate == quick().base.learning_rate


def test_a_stopped_build_says_how_to_go_on(run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hyperdream_core.miniature.recipe import publish

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(publish, "publish", stop)
    ran = run("miniature", "build", "--quick", "--work", tmp_path / "work", "--out", tmp_path / "out")
    assert ran.code == 130 and f"are kept in {tmp_path / 'work'}; the same command goes on" in ran.error


@contextmanager
def stopping_at_step_1(console: Console, label: str, unit: str = "step") -> Iterator[Callable[[int, int], None]]:
    def progress(step: int, total: int) -> None:
        if step == 1:
            raise KeyboardInterrupt

    yield progress


def test_stopping_polish_before_its_first_step_leaves_an_earlier_result_as_it_was(
    run: Callable, base_folder: Path, picture: Path, identity: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def at_once(console: Console, label: str, unit: str = "step") -> Iterator[Callable[[int, int], None]]:
        def progress(step: int, total: int) -> None:
            raise KeyboardInterrupt

        yield progress

    monkeypatch.setattr(Console, "progress", at_once)
    out = tmp_path / "result.safetensors"
    out.write_bytes(b"polished for an hour")
    words = ("polish", picture, "--start", identity, "--base", base_folder, "--out", out, *TINY, "--steps", "3")
    ran = run(*words, "--caption", "none")
    assert ran.code == 130 and f"before the first step; {out} is as it was" in ran.error
    assert out.read_bytes() == b"polished for an hour"


@pytest.mark.parametrize("name", ["脸" * 80, "caf\udce9", "con"])
def test_a_picture_of_any_name_gives_results_that_every_system_can_name(
    run: Callable, job: tuple[object, ...], picture: Path, tmp_path: Path, name: str
) -> None:
    odd = picture.rename(picture.with_name(f"{name}.png"))
    words = [{picture: odd, "2": "1"}.get(word, word) for word in job]
    ran = run(*words, "--prompt", "a [V] face", "--json")
    assert ran.code == 0, ran.error
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert len(made) == 5 and all(check_name(Path(one).stem[:30]) and len(one.encode()) < 130 for one in made)
    assert {Path(one["path"]).name for one in ran.json["files"].values()} == made - {
        one for one in made if one.endswith(".json")
    }
