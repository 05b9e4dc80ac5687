from __future__ import annotations

import json
from pathlib import Path

import pytest

from hyperdream_core.errors import OutputError
from hyperdream_core.pipelines.results_folder import ResultsFolder


def test_results_lie_where_they_belong(tmp_path: Path) -> None:
    results = ResultsFolder.open(tmp_path / "new" / "folder")
    path = results.keep_json("report.json", {"name": "Zoë", "seconds": 1.5})
    assert path == tmp_path / "new" / "folder" / "report.json" and results.written == [path]
    assert json.loads(path.read_text("utf-8")) == {"name": "Zoë", "seconds": 1.5}
    results.close()
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]


def test_a_folder_that_cannot_be_made_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"cannot be written .*, but the results belong there; choose another"):
        ResultsFolder.open(tmp_path / "file" / "below")


def test_a_result_that_cannot_be_written_is_kept_elsewhere_and_the_others_too(tmp_path: Path) -> None:
    results = ResultsFolder.open(tmp_path)

    def write(path: Path) -> None:
        if path.parent == tmp_path:
            raise OutputError(f"{path}: cannot be written (No space left on device)")
        path.write_text("finished work")

    kept = results.keep("identity.txt", write)
    assert kept.read_text() == "finished work"
    assert results.keep_json("report.json", {}).parent == tmp_path
    with pytest.raises(OutputError, match=f"No space left on device.*is in {kept.parent}"):
        results.close()


def test_a_disk_that_is_full_everywhere_is_said(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        raise OSError(28, "No space left on device")

    results = ResultsFolder.open(tmp_path)
    results.keep("identity.txt", write)
    kept = results.keep_json("report.json", {})
    assert kept.exists() and results.written == [kept]
    with pytest.raises(OutputError, match=r"identity.txt could be written neither .* nor .*cannot be kept .*No space"):
        results.close()


def test_a_folder_is_made_with_its_first_result(tmp_path: Path) -> None:
    results = ResultsFolder.open(tmp_path / "a" / "b", ["report.json"])
    assert not list(tmp_path.iterdir())
    assert results.keep_json("report.json", {}).exists()


def test_what_a_killed_process_has_left_is_removed(tmp_path: Path) -> None:
    from hyperdream_core import whole_file

    dead = f".another-name.{whole_file._machine()}-{2**22 + 7}-0123abcd.part"
    (tmp_path / dead).write_bytes(b"half")
    (tmp_path / f".{dead}.txt").write_bytes(b"somebody else's")
    ResultsFolder.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f".{dead}.txt"]


def test_a_result_never_replaces_an_input_that_nobody_foresaw(tmp_path: Path) -> None:
    photo = tmp_path / "mara.png"
    photo.write_bytes(b"the only one")
    results = ResultsFolder.open(tmp_path, inputs=[photo])
    kept = results.keep_text("mara.png", "a result")
    assert photo.read_bytes() == b"the only one" and kept.read_text() == "a result"
    with pytest.raises(OutputError, match="is what is read here"):
        results.close()


def test_names_that_are_too_long_do_not_become_one_where_results_are_rescued(tmp_path: Path) -> None:
    results = ResultsFolder.open(tmp_path)
    kept = {results.keep_text("脸" * 100 + end, end) for end in ("-1.png", "-2.png", "-lora.safetensors")}
    assert len(kept) == 3 and {path.suffix for path in kept} == {".png", ".safetensors"}
