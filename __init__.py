"""ComfyUI loads a pack through this file; everywhere else it does nothing.

pytest and packaging tools import it too, so the nodes are taken in only where the host is found.
"""

from importlib.util import find_spec
from pathlib import Path

if find_spec("comfy_api") is not None and (Path(__file__).parent / "nodes" / "__init__.py").is_file():
    from .nodes import comfy_entrypoint  # noqa: F401

    WEB_DIRECTORY = "./web"
