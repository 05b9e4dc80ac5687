"""pyproject.toml names every package, and every folder that an installed copy needs."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Read as text: tomllib came with Python 3.11, and 3.10 is supported.
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def listed(key: str) -> list[str]:
    found = re.search(rf"^{key} = \[(.*?)\]$", PROJECT, re.MULTILINE | re.DOTALL)
    assert found, f"no {key} in pyproject.toml"
    return re.findall(r'"([^"]+)"', found[1])


def test_every_package_of_the_core_is_installed() -> None:
    folders = {file.parent.relative_to(ROOT) for file in (ROOT / "hyperdream_core").rglob("*.py")}
    packages = {".".join(folder.parts) for folder in folders}
    assert packages == {name for name in listed("packages") if name.startswith("hyperdream_core")}
    for folder in folders:
        assert (ROOT / folder / "__init__.py").is_file()


def test_weights_and_examples_travel_with_the_package() -> None:
    assert {"hyperdream_weights", "hyperdream_examples"} <= set(listed("packages"))
    assert 'hyperdream_weights = "weights"' in PROJECT and 'hyperdream_examples = "examples"' in PROJECT


def test_no_dependency_has_an_upper_bound() -> None:
    for requirement in listed("dependencies"):
        assert not re.search("<|==|~=", requirement), requirement


def test_the_installer_asks_for_what_the_project_depends_on() -> None:
    import install

    known = {name for names, _ in [*install.REQUIRED.values(), *install.OPTIONAL.values()] for name in names.split()}
    assert {re.split("[<>=]", requirement)[0] for requirement in listed("dependencies")} <= known
