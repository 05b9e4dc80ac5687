"""The tab as a function, on whichever gradio is there: 3.41 as Automatic1111 has it, or 4.40 as Forge."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hyperdream_webui import html as page
from hyperdream_webui.lora_folder import LoraFolder
from hyperdream_webui.orders import Created, Order
from PIL import Image

from hyperdream_core.errors import ConfigError, ReferenceImageError

from .conftest import idle_host, make_identity

gradio = pytest.importorskip("gradio", reason="both hosts bring it; nothing else here needs it")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def jobs(tmp_path: Path) -> Any:
    return SimpleNamespace(webui=idle_host(), loras=LoraFolder(tmp_path / "lora", tmp_path / "own"))


def elements(tab: Any) -> set[str]:
    return {part["props"].get("elem_id") for part in tab.get_config_file()["components"]}


def test_it_is_built_anew_for_every_page(jobs: Any) -> None:
    from hyperdream_webui.tab import build_tab

    first, second = elements(build_tab(jobs)), elements(build_tab(jobs))
    assert {"hyperdream_files", "hyperdream_create", "hyperdream_grid", "hyperdream_cards"} <= first == second


class Page:
    """A tab as its page uses it: buttons and boxes by their ids, values through gradio's own conversions."""

    def __init__(self, tab: Any) -> None:
        self.tab, config = tab, tab.get_config_file()
        self.ids = {part["props"].get("elem_id"): part["id"] for part in config["components"]}
        self.names = {number: name for name, number in self.ids.items()}
        self.values = {part["id"]: part["props"].get("value") for part in config["components"]}
        self.events = config["dependencies"]
        self.offered: dict[int, list[str]] = {}

    def choices(self, name: str) -> list[str]:
        """What a list offers since it was last told."""
        return self.offered[self.ids[name]]

    def set(self, name: str, value: Any) -> None:
        self.values[self.ids[name]] = value

    def get(self, name: str) -> Any:
        return self.values[self.ids[name]]

    def confirm(self) -> None:
        """What the browser's question puts into the hidden box of the button that deletes, on yes."""
        delete = next(one for one in self.events if one.get("js") == page.CONFIRM_DELETE)
        self.values[delete["inputs"][1]] = "yes"

    def fire(self, name: str, event: str = "click") -> None:
        """What happens in Python when a button is clicked or a box has changed."""
        for number, found in enumerate(self.events):
            # Gradio 3 names the event once, and 4 beside each target.
            targets = [(one, found["trigger"]) if isinstance(one, int) else tuple(one) for one in found["targets"]]
            if (self.ids[name], event) not in targets or not found["backend_fn"]:
                continue
            inputs = [self.values[one] for one in found["inputs"]]
            made = asyncio.run(self.tab.process_api(number, inputs, state=None))["data"]
            for one, value in zip(found["outputs"], made, strict=True):
                if isinstance(value, dict) and "choices" in value:
                    self.offered[one] = [
                        choice if isinstance(choice, str) else choice[1] for choice in value["choices"]
                    ]
                is_update = isinstance(value, dict) and "__type__" in value
                self.values[one] = value.get("value", self.values[one]) if is_update else value


def test_create_through_the_page_and_what_it_refuses(jobs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from hyperdream_webui import tab as module
    from hyperdream_webui.tab import build_tab

    # Each release of gradio hands over dropped files in a form of its own.
    monkeypatch.setattr(module, "paths_of", lambda dropped: ["anna.png"])
    orders: list[Order] = []

    def create(order: Order) -> Created:
        if order.name == "nobody":
            raise ConfigError("there is no photograph; drop one")
        orders.append(order)
        picture = Image.new("RGB", (8, 8))
        return Created(
            name="mara-1a2b3c.safetensors",
            prompt="<lora:mara-1a2b3c:1> a sks face",
            grid=picture,
            likeness=0.8,
            likeness_before=0.1,
            report="polished for 40 steps",
            infotext="Steps: 20",
            cancelled=False,
        )

    jobs.create = create
    tab = Page(build_tab(jobs))
    tab.set("hyperdream_name", "mara")
    tab.fire("hyperdream_create")
    assert orders[0].name == "mara" and orders[0].steps == -1 and orders[0].on == "checkpoint"
    assert "polished for 40 steps" in tab.get("hyperdream_result") and tab.get("hyperdream_grid")
    assert tab.get("hyperdream_prompt") == "<lora:mara-1a2b3c:1> a sks face"
    assert "width: 80%" in tab.get("hyperdream_likeness")
    tab.set("hyperdream_name", "nobody")
    tab.fire("hyperdream_create")
    assert "hd-refused" in tab.get("hyperdream_result") and "drop one" in tab.get("hyperdream_result")


def test_the_library_through_the_page(jobs: Any) -> None:
    from hyperdream_webui.tab import build_tab

    first, second = (jobs.loras.put(make_identity("sd15", seed=seed), name) for seed, name in ((1, "ana"), (2, "bea")))
    tab = Page(build_tab(jobs))
    tab.fire("hyperdream_refresh")
    assert tab.get("hyperdream_cards").count("hd-card") >= 2
    tab.set("hyperdream_chosen", first)
    tab.fire("hyperdream_chosen", "change")
    assert tab.get("hyperdream_chosen_prompt").startswith("<lora:ana-")
    tab.set("hyperdream_new_name", "lea")
    tab.fire("hyperdream_rename")
    assert tab.get("hyperdream_chosen").startswith("lea-") and "is now lea-" in tab.get("hyperdream_library_message")
    tab.set("hyperdream_other", second)
    tab.fire("hyperdream_blend")
    assert tab.get("hyperdream_chosen").startswith("blend-")
    tab.fire("hyperdream_delete")
    assert tab.get("hyperdream_chosen").startswith("blend-"), "who cancels keeps the choice"
    assert "is still there" in tab.get("hyperdream_library_message")
    tab.confirm()
    tab.fire("hyperdream_delete")
    assert tab.get("hyperdream_chosen") == "" and "is deleted" in tab.get("hyperdream_library_message")
    assert sorted(entry.title.partition("-")[0] for entry in jobs.loras.entries()) == ["bea", "lea"]
    tab.set("hyperdream_chosen", "gone.safetensors")
    tab.fire("hyperdream_rename")
    assert "hd-refused" in tab.get("hyperdream_library_message")


def test_with_nobody_chosen_every_button_says_so(jobs: Any) -> None:
    from hyperdream_webui.tab import build_tab

    jobs.loras.put(make_identity("sd15"), "ana")
    tab = Page(build_tab(jobs))
    tab.set("hyperdream_chosen", "")
    for button in ("rename", "delete", "blend", "export"):
        tab.set("hyperdream_library_message", "")
        tab.fire(f"hyperdream_{button}")
        assert "click a card first" in tab.get("hyperdream_library_message"), button
    for button, message in (("send_chosen", "library_message"), ("send", "sent")):
        tab.fire(f"hyperdream_{button}")
        assert "no prompt to send" in tab.get(f"hyperdream_{message}")
    assert len(jobs.loras.entries()) == 1


def test_only_people_of_the_same_family_are_offered_to_blend_with(jobs: Any) -> None:
    from hyperdream_webui.tab import build_tab

    first, second = (jobs.loras.put(make_identity("sd15", seed=seed), name) for seed, name in ((1, "ana"), (2, "bea")))
    other = jobs.loras.put(make_identity("miniature"), "mini")
    tab = Page(build_tab(jobs))
    tab.set("hyperdream_chosen", first)
    tab.fire("hyperdream_chosen", "change")
    assert tab.choices("hyperdream_other") == [second]
    tab.set("hyperdream_chosen", other)
    tab.fire("hyperdream_chosen", "change")
    assert tab.choices("hyperdream_other") == [] and "in this tab only" in tab.get("hyperdream_library_message")
    tab.fire("hyperdream_blend")
    assert "nobody to blend with" in tab.get("hyperdream_library_message")


def test_a_file_that_cannot_be_read_looks_it(jobs: Any) -> None:
    from hyperdream_webui.tab import build_tab

    jobs.loras.put(make_identity("sd15"), "ana")
    (jobs.loras.lora_folder / "broken.safetensors").write_bytes(b"\xff" * 50)
    shown = page.cards(jobs.loras)
    assert shown.count("hd-bad") == shown.count("cannot be read") == 1
    tab = Page(build_tab(jobs))
    tab.set("hyperdream_chosen", "broken.safetensors")
    tab.fire("hyperdream_chosen", "change")
    assert "hd-refused" in tab.get("hyperdream_library_message") and not tab.get("hyperdream_chosen_prompt")


def test_a_drawn_portrait_on_the_checkpoint_is_refused_in_this_tabs_words(jobs: Any) -> None:
    from hyperdream_webui import tab as module

    error = ReferenceImageError(
        "picture 1 shows no face. Use a photograph with a face at least 64 px wide, take it as already-cropped, or set "
        "on_no_face to skip or whole-picture"
    )
    text = module.worded(error, "the loaded checkpoint")
    assert "on_no_face" not in text and "'If no face is found' to be skip" in text and "'Which face'" in text
    assert "Drawn portraits" in text and "at 'Make it on'" in text
    assert "Drawn portraits" not in module.worded(error, module._DRAWN)


def test_an_emptied_dial_is_refused_in_a_sentence(jobs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from hyperdream_webui import tab as module

    monkeypatch.setattr(module, "paths_of", lambda dropped: ["anna.png"])
    jobs.create = pytest.fail
    tab = Page(module.build_tab(jobs))
    for name, value, words in (
        ("seed", None, "is empty or no number"),
        ("seed", 2**70, "must lie in"),
        ("identifier", "  ", "must be a word"),
        ("class", "", "must be a word"),
    ):
        before = tab.get(f"hyperdream_{name}")
        tab.set(f"hyperdream_{name}", value)
        tab.fire("hyperdream_create")
        assert words in tab.get("hyperdream_result"), name
        tab.set(f"hyperdream_{name}", before)


def test_its_scripts_reach_the_browser(jobs: Any) -> None:
    from hyperdream_webui.tab import build_tab

    scripts = [one.get("js") for one in build_tab(jobs).get_config_file()["dependencies"]]
    assert {page.START, page.TO_TXT2IMG, page.CONFIRM_DELETE} <= {str(one) for one in scripts}


def test_files_are_known_in_both_ways() -> None:
    from hyperdream_webui.tab import paths_of

    assert paths_of([SimpleNamespace(name="/a.png"), "/b.png"]) == ["/a.png", "/b.png"] and paths_of("/c") == ["/c"]


def test_cards_hide_nothing_and_run_nothing_of_a_files_name(jobs: Any) -> None:
    name = jobs.loras.put(make_identity("sd15"), "mara & 'lena'", Image.new("RGB", (64, 64)))
    shown = page.cards(jobs.loras)
    assert "mara &amp; &#x27;lena&#x27;" in shown and "data:image/jpeg" in shown and name not in shown
    (jobs.loras.lora_folder / "broken.safetensors").write_bytes(b"\xff" * 50)
    assert "broken" in page.cards(jobs.loras)


def test_likeness_is_shown_as_bars_or_not_at_all() -> None:
    assert page.likeness_bars(None, None) == ""
    both = page.likeness_bars(0.1, 0.85)
    assert "width: 10%" in both and "width: 85%" in both and page.likeness_bars(None, 0.5).count("hd-bar") == 1
