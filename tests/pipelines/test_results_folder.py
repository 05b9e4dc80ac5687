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

    with pytest.raises(OutputError, match=r"cannot be written, nor can .*; free some space"):
        ResultsFolder.open(tmp_path).keep("identity.txt", write)
