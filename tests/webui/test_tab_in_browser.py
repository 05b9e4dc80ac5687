"""The tab clicked through in headless Chromium: run where gradio, playwright and a Chromium are installed."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hyperdream_webui.lora_folder import LoraFolder
from hyperdream_webui.orders import Created, Order
from PIL import Image

from hyperdream_core.bundled import bundled_examples
from hyperdream_core.errors import ConfigError

from .conftest import idle_host, make_identity

pytest.importorskip("gradio", reason="both hosts bring it; nothing else here needs it")
playwright = pytest.importorskip("playwright.sync_api", reason="it drives the browser")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the path"),
]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A served tab, over jobs that make the same identity of whatever photograph it is given."""
    from hyperdream_webui.tab import build_tab

    loras = LoraFolder(tmp_path / "lora", tmp_path / "own")

    def create(order: Order) -> Created:
        if not order.files:
            raise ConfigError("there is no photograph; drop one")
        name = loras.put(make_identity("sd15"), order.name, Image.open(order.files[0]))
        return Created(
            name=name,
            prompt=loras.prompt(name),
            grid=Image.open(order.files[0]),
            likeness=0.8,
            likeness_before=0.1,
            report=f"made of {len(order.files)} photograph",
            infotext="Steps: 20",
            cancelled=False,
        )

    def look(files: Any, choice: Any, where: str) -> Any:
        return [Image.open(file) for file in files], "1 face found"

    # Gradio 4 makes its locks only where the thread has a loop, which other tests' `asyncio.run` takes away.
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    tab = build_tab(SimpleNamespace(webui=idle_host(), loras=loras, create=create, look=look))
    _, local, _ = tab.launch(prevent_thread_lock=True, quiet=True)
    yield local
    tab.close()
    loop.close()


@pytest.fixture
def page(address: str) -> Iterator[Any]:
    """The tab in a browser, in which no script has failed by the end."""
    failed: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.on("dialog", lambda dialog: dialog.accept())
        page.goto(address)
        yield page
        browser.close()
    assert failed == []


def test_from_a_photograph_to_a_prompt_and_through_the_library(page: Any) -> None:
    page.click("#hyperdream_create")
    page.wait_for_selector("#hyperdream_result .hd-refused >> text=drop one")

    page.set_input_files("#hyperdream_files input[type=file]", bundled_examples() / "portrait.png")
    page.wait_for_selector("#hyperdream_report >> text=1 face found")
    page.wait_for_selector("#hyperdream_faces img")
    page.fill("#hyperdream_name textarea, #hyperdream_name input", "mara")
    page.click("#hyperdream_create")
    page.wait_for_selector("#hyperdream_result >> text=made of 1 photograph")
    page.wait_for_selector("#hyperdream_grid img")
    page.wait_for_selector("#hyperdream_likeness .hd-after")
    prompt = page.input_value("#hyperdream_prompt textarea, #hyperdream_prompt input")
    assert prompt.startswith("<lora:mara-") and prompt.endswith("sks face")

    page.click("button:text-is('Library')")
    page.click("#hyperdream_cards .hd-card")
    page.wait_for_function("document.querySelector('#hyperdream_chosen_prompt :is(textarea, input)').value !== ''")
    assert page.input_value("#hyperdream_chosen_prompt textarea, #hyperdream_chosen_prompt input") == prompt
    page.click("#hyperdream_delete")
    page.wait_for_selector("#hyperdream_cards >> text=No identities yet")
