"""Everything that is registered with the host, each time it runs its scripts: at its start and on a reload."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from . import lora_reader
from .host import WebUI
from .jobs import Jobs

TITLE = "HyperDream"


def register() -> None:
    """Add the tab, the API and the reading of identities; before a reload the host forgets its callbacks."""
    from modules import script_callbacks

    script_callbacks.on_before_ui(extend_host)
    script_callbacks.on_ui_tabs(tabs)
    script_callbacks.on_app_started(add_routes)


@lru_cache(maxsize=1)
def jobs() -> Jobs:
    """The jobs that tab and API share."""
    return Jobs(WebUI())


def extend_host() -> None:
    """Teach the host's Lora extension to read identities, and its plot to vary them."""
    from .guidance import axes
    from .guidance.script import guidable

    lora_reader.register()
    axes.register(lambda: guidable(jobs().loras))


def tabs() -> list[tuple[Any, str, str]]:
    """The tab, its title and its id."""
    from .tab import build_tab

    return [(build_tab(jobs()), TITLE, "hyperdream")]


def add_routes(demo: Any, app: Any) -> None:
    """The API, behind the host's own switch."""
    if jobs().webui.has_api:
        from . import routes

        routes.register(app, jobs())


def guidance_script() -> type:
    """The accordion of txt2img and img2img, which the host finds as a class in the script's file."""
    from modules import scripts

    from .guidance.script import GuidanceAccordion

    class GuidanceScript(GuidanceAccordion, scripts.Script):
        loras = jobs().loras
        always_visible = scripts.AlwaysVisible

    return GuidanceScript
