"""The jobs of the tab on a fake checkpoint: made, kept, drawn, stopped, refused."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hyperdream_webui import a1111_base
from hyperdream_webui.host import WebUI
from hyperdream_webui.jobs import Jobs
from hyperdream_webui.orders import LARGEST_SEED, FaceChoice, Order
from hyperdream_webui.shipped_bases import shipped_base
from PIL import Image

from hyperdream_core.bases import get_base
from hyperdream_core.bundled import bundled_examples
from hyperdream_core.errors import ConfigError, MissingDependencyError, ReferenceImageError
from hyperdream_core.pipelines.polishing import room
from hyperdream_core.pipelines.polishing.memory import Room, bytes_needed

from .conftest import FakeModel, Networks

WHOLE = FaceChoice(detector="already-cropped")


class FakeWebUI(WebUI):
    """The host, whose pictures are plain colours."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.stop_before = 10**9

    def loaded_base(self) -> Any:
        return a1111_base.loaded_base()

    def progress(self, label: str) -> Any:
        report = super().progress(label)

        def progress(step: int, total: int, picture: Any = None) -> None:
            if step >= self.stop_before:
                self.interrupt()
            report(step, total, picture)

        return progress

    def draw(self, prompt: str, seed: int, size: int, steps: int) -> tuple[Image.Image, str]:
        self.prompts.append(prompt)
        return Image.new("RGB", (size, size), (seed % 256, len(prompt) % 256, 99)), f"{prompt}\nSteps: {steps}"


@pytest.fixture
def jobs(a1111: SimpleNamespace) -> Jobs:
    torch.manual_seed(0)
    a1111.shared.sd_model = FakeModel("miniature")
    return Jobs(FakeWebUI())


def order(**more: Any) -> Order:
    files = [bundled_examples() / "portrait.png"]
    facts = {"files": files, "faces": WHOLE, "name": "mara", "steps": 3, "batch": 1, "predict": False, "size": 64}
    return Order(**(facts | more))


def test_what_is_made_is_kept_drawn_and_reported(jobs: Jobs) -> None:
    made = jobs.create(order(prompts="a [V] face\na face at the beach", seed=5))
    assert not made.cancelled and "polished from scratch for 3 steps" in made.report
    stem = Path(made.name).stem
    assert jobs.webui.prompts == [
        "a face", f"a sks face <lora:{stem}:1>", "a face at the beach", f"a sks face at the beach <lora:{stem}:1>",
    ]  # fmt: skip
    assert made.infotext.endswith("Steps: 20") and made.grid is not None and made.grid.width > made.grid.height / 2
    assert jobs.loras.library.preview(made.name) is not None


def test_interrupt_keeps_the_best_so_far_and_draws_no_more(jobs: Jobs) -> None:
    jobs.webui.stop_before = 2
    made = jobs.create(order(steps=9))
    assert made.cancelled and "stopped by you" in made.report and made.grid is None
    assert any(c.up.abs().max() > 0 for c in jobs.loras.read(made.name).coefficients.values())
    assert jobs.webui.prompts == []


def test_the_hosts_bar_moves_and_its_lora_page_hears_of_new_files(
    jobs: Jobs, a1111: SimpleNamespace, networks: Networks
) -> None:
    jobs.create(order(prompts=""))
    state = a1111.shared.state
    assert (state.job_count, state.sampling_step, state.sampling_steps, state.textinfo) == (1, 3, 3, "polishing")
    assert networks.refreshed == 1


def test_too_little_memory_gives_way_and_then_is_refused_before_any_photograph_is_read(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = bytes_needed(get_base("miniature"), 64, 1, Room(free=0, number_size=4, device="cpu"))
    monkeypatch.setattr(room, "free_memory", lambda device: 1.2 * needed)
    made = jobs.create(order(batch=4, prompts=""))
    assert "polishing as asked needs about" in made.report and "1 sample at once instead of 4" in made.report
    monkeypatch.setattr(room, "free_memory", lambda device: 1e5)
    with pytest.raises(ConfigError, match=r"even at 64 px, one sample at once, needs about \d+ MB beside the model"):
        jobs.create(order(files=["/nowhere/face.png"]))


def test_a_prediction_alone_takes_no_training(jobs: Jobs) -> None:
    made = jobs.create(order(predict=True, steps=0, prompts=""))
    assert made.report.startswith("predicted,") and jobs.loras.read(made.name).family == "miniature"


def test_without_a_predictor_the_user_is_told(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Jobs, "predictor_for", lambda self, family: (None, []))
    assert "no predictor for the miniature" in jobs.create(order(predict=True, prompts="")).report
    with pytest.raises(ConfigError, match="nothing to make an identity with"):
        jobs.create(order(predict=True, steps=0))


def test_bad_files_among_the_predictors_are_passed_over_and_said(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = jobs.webui.own_folder / "predictors"
    folder.mkdir(parents=True)
    (folder / "strange.safetensors").write_bytes(b"\xff" * 64)
    (folder / "nowhere.safetensors").symlink_to(folder / "gone")
    (folder / "folder.safetensors").mkdir()
    assert jobs.predictor_for("miniature")[0] is not None
    found, notes = jobs.predictor_for("sd15")
    assert found is None and len(notes) == 2 and str(folder) not in " ".join(notes)
    monkeypatch.setattr("hyperdream_webui.shipped_bases.bundled_predictor", lambda family: None)
    report = jobs.create(order(predict=True, prompts="")).report
    assert "passed over: strange.safetensors" in report and "folder.safetensors" in report


def test_a_seed_by_chance_is_said_and_draws_again(jobs: Jobs) -> None:
    reports = [jobs.create(order(seed=-1, prompts="")).report for _ in range(2)]
    seeds = [int(re.search(r"seed (\d+)", report)[1]) for report in reports]  # type: ignore[index]
    assert seeds[0] != seeds[1] and all(0 <= seed <= LARGEST_SEED for seed in seeds)


def test_messages_call_photographs_by_their_names(jobs: Jobs, tmp_path: Path) -> None:
    photograph = tmp_path / "anna.png"
    photograph.write_bytes(b"no picture")
    for work in (lambda: jobs.look([photograph], WHOLE), lambda: jobs.create(order(files=[photograph]))):
        with pytest.raises(ReferenceImageError, match=r"^anna\.png: ") as raised:
            work()
        assert str(tmp_path) not in str(raised.value)
    Image.new("RGB", (5000, 300)).save(photograph)
    assert "anna.png: reduced" in jobs.look([photograph], WHOLE)[1]
    assert str(tmp_path) not in jobs.look([photograph], WHOLE)[1]


def test_generation_data_draw_the_same_person_when_pasted(jobs: Jobs, a1111: SimpleNamespace) -> None:
    # The host leaves the tags of networks out of the prompt of a picture's infotext.
    done = SimpleNamespace(images=[Image.new("RGB", (8, 8))], infotexts=["a sks face\nSteps: 20, Seed: 3"])
    job = SimpleNamespace(close=lambda: None)
    processing = SimpleNamespace(
        StableDiffusionProcessingTxt2Img=lambda **facts: job, process_images=lambda asked: done
    )
    sys.modules["modules"].processing = processing  # type: ignore[attr-defined]
    _, infotext = WebUI().draw("a sks face <lora:mara-3f2a91:1>", 3, 64, 20)
    assert infotext == "a sks face <lora:mara-3f2a91:1>\nSteps: 20, Seed: 3"


def test_the_miniature_says_which_package_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped_base.cache_clear()
    monkeypatch.setattr("hyperdream_webui.shipped_bases.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install --no-deps diffusers==0\.32\.2"):
        shipped_base("miniature")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"files": []}, "there is no photograph"),
        ({"steps": -2}, "steps must lie in"),
        ({"size": 100}, "multiple of 64"),
        ({"on": "moon"}, "'checkpoint' or 'miniature'"),
        ({"prompts": "a\nb\nc\nd\ne"}, "5 prompts"),
        ({"name": "../up"}, "cannot be a name"),
        ({"identifier": ""}, "'sks'"),
        ({"identifier": "a  b"}, "one space between"),
        ({"class_noun": "<lora:x:1>"}, "'face'"),
        ({"seed": 2**70}, "seed must lie in"),
        ({"draw_steps": 0}, "draw_steps must lie in"),
        ({"caption": "a\nb"}, "2 lines for 1 pictures"),
    ],
)
def test_a_wrong_order_is_refused_in_a_sentence(jobs: Jobs, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        jobs.create(order(**wrong))


def test_looking_says_what_is_seen(jobs: Jobs) -> None:
    previews, report = jobs.look([bundled_examples() / "portrait.png"], FaceChoice(), "miniature")
    assert len(previews) == 1 and "picture 1: face 1 of 1" in report
