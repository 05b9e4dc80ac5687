"""What a published archive holds: no word that makes the registry hide a release, and nothing in a strange place."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The registry's scanner goes by words, not by meaning, and one finding hides a version from users.
PYTHON_WORDS = re.compile(
    r"\bsubprocess\b|\bos\.system\b|\bos\.environ\b|\burllib\b|\brequests\.|\bimportlib\.import_module\b"
    r"|\beval\(|\bexec\(|\btorch\.load\(|\bpickle|\.connect\(|\.send\(|\.sendall\(|\bimport_module\b"
    r"|__import__|(?<!\.)\bcompile\(|\bsocket\b|\bctypes\b|\bsqlite|\bmarshal\b|\bcryptography\b|\brm -rf\b"
)
SCRIPT_WORDS = re.compile(r"\beval\(|\.connect\(|\.send\(|\bXMLHttpRequest\b|\bWebSocket\b|\bnew Function\b|\batob\(")
# Long unbroken runs of its letters look like hidden code, whatever they are.
BASE64_BLOB = re.compile(r"[A-Za-z0-9+/=]{200,}")
LONGEST_FILE = 400
LARGEST_FILE = 32_000_000

FOLDERS = {".ci", "benchmarks", "docs", "examples", "hyperdream_core", "nodes", "scripts", "tests", "weights", "web"}
# Where ComfyUI looks for templates, translations and blueprints.
FOLDERS |= {"example_workflows", "locales", "subgraphs"}
FILES = {
    ".comfyignore",
    ".gitattributes",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "__init__.py",
    "install.py",
    "pyproject.toml",
    "requirements.txt",
}


def git_files(*arguments: str) -> set[str]:
    command = ["git", "-C", str(ROOT), "ls-files", "-z", *arguments]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name for name in listing.split("\0") if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def project() -> set[str]:
    """All files of the project, those not committed yet included."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so there is no list of files")
    return git_files() | git_files("--others", "--exclude-standard")


@pytest.fixture(scope="module")
def shipped(project: set[str]) -> set[str]:
    """The files of a published archive: git's, less those that .comfyignore names."""
    rules = "--exclude-from=.comfyignore"
    return project - git_files("--cached", "--ignored", rules) - git_files("--others", "--ignored", rules)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_archive_holds_what_runs_and_not_what_tests(shipped: set[str]) -> None:
    tops = {name.split("/")[0] for name in shipped}
    assert {"hyperdream_core", "install.py", "__init__.py", "pyproject.toml", "LICENSE"} <= tops
    assert not tops & {"tests", "benchmarks", ".ci"}


def test_no_word_of_the_scanner_is_in_a_shipped_file(shipped: set[str]) -> None:
    found = []
    for name in sorted(shipped):
        words = {".py": PYTHON_WORDS, ".js": SCRIPT_WORDS, ".mjs": SCRIPT_WORDS}.get(Path(name).suffix)
        if words is not None:
            lines = enumerate(read(name).splitlines(), start=1)
            found += [f"{name}:{number} {line.strip()}" for number, line in lines if words.search(line)]
    assert not found


def test_nothing_shipped_looks_like_hidden_code(shipped: set[str]) -> None:
    readable = {".py", ".js", ".mjs", ".css", ".md", ".toml", ".txt"}
    assert not {name for name in shipped if Path(name).suffix in readable and BASE64_BLOB.search(read(name))}
    assert BASE64_BLOB.search("data:image/png;base64," + "iVBOR" * 50)


def test_every_module_of_the_nodes_says_in_a_sentence_what_it_is(shipped: set[str]) -> None:
    modules = {name: read(name) for name in shipped if name.startswith("nodes/") and name.endswith(".py")}
    assert modules
    assert not {name for name, source in modules.items() if not ast.get_docstring(ast.parse(source))}
    assert not {name for name, source in modules.items() if "from __future__ import annotations" not in source}


def test_the_registry_is_told_what_it_asks_for() -> None:
    text = read("pyproject.toml")
    for entry in ("[tool.comfy]", "PublisherId = ", "DisplayName = ", "requires-comfyui = ", 'Repository = "https://'):
        assert entry in text
    assert "comfyui" not in text.partition('name = "')[2].partition('"')[0].lower()


@pytest.mark.parametrize(
    "line",
    [
        "import subprocess",
        "model.eval()",
        "os.environ['A']",
        "torch.load(path)",
        "s.send(x)",
        "s.sendall(x)",
        "import sqlite3",
        "__import__('os')",
        "import socket",
        "compile(source)",
    ],
)
def test_the_scan_knows_its_words(line: str) -> None:
    assert PYTHON_WORDS.search(line)


@pytest.mark.parametrize(
    "line",
    ["retrieval(x)", "model.train(False)", "executor.map(f)", "torch.load_state", "re.compile(r'a')", "websocket"],
)
def test_the_scan_does_not_stumble_over_others(line: str) -> None:
    assert not PYTHON_WORDS.search(line)


def test_the_top_level_holds_only_what_the_layout_names(project: set[str]) -> None:
    assert {name.split("/")[0] for name in project if "/" in name} <= FOLDERS
    assert {name for name in project if "/" not in name} <= FILES


def test_no_source_file_holds_two_ideas(project: set[str]) -> None:
    lengths = {name: len(read(name).splitlines()) for name in project if name.endswith(".py")}
    assert not {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE}


def test_no_file_is_named_for_having_no_idea(project: set[str]) -> None:
    assert not {name for name in project if Path(name).name in {"utils.py", "common.py", "misc.py", "helpers.py"}}


def test_every_module_says_in_a_sentence_what_it_is(shipped: set[str]) -> None:
    modules = {name: read(name) for name in shipped if name.startswith("hyperdream_core/") and name.endswith(".py")}
    assert not {name for name, source in modules.items() if not ast.get_docstring(ast.parse(source))}
    rest = {name: source for name, source in modules.items() if not name.endswith("__init__.py")}
    assert not {name for name, source in rest.items() if "from __future__ import annotations" not in source}


def test_no_file_is_too_large_to_clone(project: set[str]) -> None:
    assert not {name for name in project if (ROOT / name).stat().st_size > LARGEST_FILE}


def test_weights_do_not_say_in_which_folder_they_were_made(project: set[str]) -> None:
    configs = [name for name in project if name.startswith("weights/") and name.endswith(".json")]
    assert configs and not [name for name in configs if "_name_or_path" in read(name)]


def test_only_safetensors_holds_weights(project: set[str]) -> None:
    assert not {name for name in project if Path(name).suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".onnx"}}


def test_the_requirements_move_nothing_that_a_host_has() -> None:
    wanted = [line.strip() for line in read("requirements.txt").splitlines() if line.strip() and line[0] != "#"]
    assert wanted == ["scikit-image"]
