"""The script file as the host runs it: anonymous, with a path that is put back, and again on every reload."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType, SimpleNamespace

import pytest

from .conftest import ROOT


def run_script() -> ModuleType:
    """Execute scripts/hyperdream.py as both hosts do."""
    path, before = ROOT / "scripts" / "hyperdream.py", sys.path
    spec = spec_from_file_location(path.name, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    try:
        sys.path = [str(ROOT), *sys.path]
        inside = list(sys.path)
        spec.loader.exec_module(module)
        assert sys.path == inside
    finally:
        sys.path = before
    return module


def test_it_registers_and_leaves_nothing_else(a1111: SimpleNamespace) -> None:
    module = run_script()
    assert [kind for kind, _ in a1111.callbacks] == ["before_ui", "ui_tabs", "app_started"]
    assert "hyperdream.py" not in sys.modules and "hyperdream" not in sys.modules
    assert not [name for name in vars(module) if name in {"nodes", "modules", "networks"}]


def test_the_host_finds_the_accordion_among_the_files_names(a1111: SimpleNamespace) -> None:
    classes = [one for one in vars(run_script()).values() if isinstance(one, type)]
    found = [one for one in classes if issubclass(one, a1111.scripts.Script)]
    assert len(found) == 1
    script = found[0]()
    assert script.title() == "HyperDream guidance" and script.show(False) is a1111.scripts.AlwaysVisible


def test_a_reload_registers_the_same_functions_again(a1111: SimpleNamespace) -> None:
    run_script()
    first = list(a1111.callbacks)
    a1111.callbacks.clear()
    run_script()
    assert a1111.callbacks == first


def test_the_host_finds_one_file_and_it_is_thin() -> None:
    files = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))
    assert files == ["hyperdream.py"]
    assert len((ROOT / "scripts" / "hyperdream.py").read_text(encoding="utf-8").splitlines()) < 40


def test_nothing_of_a_host_is_imported_with_the_package() -> None:
    owned = {"nodes", "utils", "core", "modules", "networks", "network", "lora", "web"}
    for path in (ROOT / "scripts" / "hyperdream_webui").rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith(("import ", "from ")):
                assert line.split()[1].split(".")[0] not in owned, f"{path.name}: {line}"


def test_the_api_stays_away_without_the_hosts_switch(a1111: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    from hyperdream_webui import extension

    extension.jobs.cache_clear()
    a1111.shared.cmd_opts.api = False
    app = SimpleNamespace(add_api_route=pytest.fail, router=SimpleNamespace(routes=[]))
    extension.add_routes(None, app)
    extension.jobs.cache_clear()
