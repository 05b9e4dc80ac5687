"""The tab as a function, on whichever gradio is there: 3.41 as Automatic1111 has it, or 4.40 as Forge."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hyperdream_webui import page
from hyperdream_webui.shelf import Shelf
from PIL import Image

from .conftest import make_identity

gradio = pytest.importorskip("gradio", reason="both hosts bring it; nothing else here needs it")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def shop(tmp_path: Path) -> Any:
    webui = SimpleNamespace(
        queued=lambda job, outputs: job,
        interrupt=lambda: None,
        refresh_networks=lambda: None,
        with_models=lambda j: j(),
    )
    return SimpleNamespace(webui=webui, shelf=Shelf(tmp_path / "lora", tmp_path / "own"))


def elements(tab: Any) -> set[str]:
    return {part["props"].get("elem_id") for part in tab.get_config_file()["components"]}


def test_it_is_built_anew_for_every_page(shop: Any) -> None:
    from hyperdream_webui.tab import build_tab

    first, second = elements(build_tab(shop)), elements(build_tab(shop))
    assert {"hyperdream_files", "hyperdream_create", "hyperdream_grid", "hyperdream_cards"} <= first == second


def test_its_scripts_reach_the_browser(shop: Any) -> None:
    from hyperdream_webui.tab import build_tab

    scripts = [one.get("js") for one in build_tab(shop).get_config_file()["dependencies"]]
    assert {page.START, page.TO_TXT2IMG, page.CONFIRM_DELETE} <= {str(one) for one in scripts}


def test_files_are_known_in_both_ways() -> None:
    from hyperdream_webui.tab import paths_of

    assert paths_of([SimpleNamespace(name="/a.png"), "/b.png"]) == ["/a.png", "/b.png"] and paths_of("/c") == ["/c"]


def test_cards_hide_nothing_and_run_nothing_of_a_files_name(shop: Any) -> None:
    name = shop.shelf.put(make_identity("sd15"), "mara & 'lena'", Image.new("RGB", (64, 64)))
    shown = page.cards(shop.shelf)
    assert "mara &amp; &#x27;lena&#x27;" in shown and "data:image/jpeg" in shown and name not in shown
    (shop.shelf.lora_folder / "broken.safetensors").write_bytes(b"\xff" * 50)
    assert "broken" in page.cards(shop.shelf)


def test_likeness_is_shown_as_bars_or_not_at_all() -> None:
    assert page.likeness_bars(None, None) == ""
    both = page.likeness_bars(0.1, 0.85)
    assert "width: 10%" in both and "width: 85%" in both and page.likeness_bars(None, 0.5).count("hd-bar") == 1
