"""ComfyUI loads the checkout as a package; everything else only walks past its __init__.py."""

from __future__ import annotations

import shutil
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load(folder: Path) -> ModuleType:
    """Load a pack as ComfyUI does: from its folder, under a name that is no identifier."""
    name = str(folder).replace(".", "_x_")
    spec = spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        for loaded in [key for key in sys.modules if key == name or key.startswith(name + ".")]:
            del sys.modules[loaded]
    return module


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """A copy of the pack's front door with one node package behind it."""
    folder = tmp_path / "comfyui-hyperdream.git"
    (folder / "nodes").mkdir(parents=True)
    shutil.copy(ROOT / "__init__.py", folder)
    (folder / "nodes" / "__init__.py").write_text("def comfy_entrypoint():\n    return 'extension'\n")
    return folder


def test_without_a_host_it_imports_and_offers_nothing(pack: Path) -> None:
    assert not hasattr(load(ROOT), "comfy_entrypoint") or "comfy_api" in sys.modules
    assert not hasattr(load(pack), "comfy_entrypoint")


def test_where_the_host_is_found_it_offers_the_nodes(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "host" / "comfy_api").mkdir(parents=True)
    (tmp_path / "host" / "comfy_api" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "host")
    assert load(pack).comfy_entrypoint() == "extension"


def test_a_host_without_our_nodes_is_left_alone(pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(pack / "nodes")
    (tmp_path / "host" / "comfy_api").mkdir(parents=True)
    (tmp_path / "host" / "comfy_api" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "host")
    assert not hasattr(load(pack), "comfy_entrypoint")
