"""Files and folders are there whole, or as they were: after failures, kills, and with many writers at once."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from safetensors import SafetensorError

from hyperdream_core.errors import OutputError
from hyperdream_core.whole_file import check_writable, is_part, reserve, whole_file, whole_folder, write_whole

ROOT = Path(__file__).resolve().parents[1]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_place_only_when_it_is_done(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, "old")
    with whole_file(path) as part:
        part.write_text("new")
        assert path.read_text() == "old" and is_part(part) and part.parent == tmp_path
    assert path.read_text() == "new" and names(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError()]
)
def test_a_failure_leaves_the_old_file_and_no_part(tmp_path: Path, failure: BaseException) -> None:
    write_whole(tmp_path / "a", "old")
    (tmp_path / "folder").mkdir()
    write_whole(tmp_path / "folder" / "a", "old")
    expected = OutputError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected), whole_file(tmp_path / "a") as part:
        part.write_text("half")
        raise failure
    with pytest.raises(expected), whole_folder(tmp_path / "folder") as part:
        (part / "a").write_text("half")
        raise failure
    assert names(tmp_path) == ["a", "folder"]
    assert (tmp_path / "a").read_text() == (tmp_path / "folder" / "a").read_text() == "old"


def test_a_folder_replaces_all_of_the_one_before(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with whole_folder(tmp_path / "folder") as part:
            (part / "deep").mkdir()
            (part / "deep" / name).write_text(name)
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder" / "deep") == ["second"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("kind", ["pipe", "link", "dangling link", "folder"])
def test_what_is_no_file_is_not_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "b")
        if kind == "link":
            (tmp_path / "b").write_text("somebody's")
    before = os.lstat(path)
    with pytest.raises(OutputError, match=r"a: is a .*, which would be lost, but a file belongs there"):
        write_whole(path, "x")
    assert os.lstat(path).st_ino == before.st_ino


@pytest.mark.parametrize("name", ["", "/", "a\0b", ".."])
def test_what_cannot_be_a_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="Choose another"):
        write_whole(name, "x")
    with pytest.raises(OutputError, match="nowhere"):
        write_whole(tmp_path / "nowhere" / "a", "x")


def test_the_part_of_a_killed_process_goes_with_the_next_write(tmp_path: Path) -> None:
    program = (
        "import os, sys; from hyperdream_core.whole_file import whole_file, whole_folder\n"
        "with whole_file(sys.argv[1] + '/a') as part, whole_folder(sys.argv[1] + '/folder') as other:\n"
        "    part.write_text('half'); (other / 'x').write_text('half'); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=False)
    left = names(tmp_path)
    assert len(left) == 2 and all(is_part(name) for name in left)
    write_whole(tmp_path / "b", "another file leaves the parts alone")
    assert len(names(tmp_path)) == 3
    write_whole(tmp_path / "a", "whole")
    with whole_folder(tmp_path / "folder"):
        pass
    assert names(tmp_path) == ["a", "b", "folder"]


def test_the_part_of_a_living_writer_stays(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a") as first:
        first.write_text("first")
        write_whole(tmp_path / "a", "second")
    assert (tmp_path / "a").read_text() == "first"


def write_often(folder: str, number: int) -> None:
    for _ in range(40):
        write_whole(Path(folder) / "report.json", json.dumps({"writer": number, "numbers": list(range(500))}))
        with whole_folder(Path(folder) / "results") as part:
            for name in ("a", "b"):
                (part / name).write_text(str(number))


def check_whole(folder: Path) -> None:
    assert names(folder) == ["report.json", "results"]
    assert json.loads((folder / "report.json").read_text())["numbers"][-1] == 499
    assert names(folder / "results") == ["a", "b"]
    assert (folder / "results" / "a").read_text() == (folder / "results" / "b").read_text()


def test_threads_that_write_the_same_names_do_not_meet(tmp_path: Path) -> None:
    failures: list[OutputError] = []

    def work(number: int) -> None:
        try:
            write_often(str(tmp_path), number)
        except OutputError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    check_whole(tmp_path)


def test_processes_that_write_the_same_names_do_not_meet(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=write_often, args=(str(tmp_path), number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    check_whole(tmp_path)


def test_a_name_of_250_bytes_can_be_written(tmp_path: Path) -> None:
    write_whole(tmp_path / ("ü" * 125), "x")
    assert (tmp_path / ("ü" * 125)).read_text() == "x"


def test_reserved_space_is_taken_from_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "map"
    reserve(path, 3_000_000)
    assert path.stat().st_size == 3_000_000 and path.stat().st_blocks * 512 >= 3_000_000
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    (tmp_path / "other").write_bytes(b"head")
    reserve(tmp_path / "other", 3_000_001)
    assert (tmp_path / "other").stat().st_size == 3_000_001
    assert (tmp_path / "other").read_bytes()[:5] == b"head\0"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        shutil.Error([("from", "to", "[Errno 28] No space left on device: 'to'")]),
        RuntimeError("No space left on device (os error 28)"),  # The tokenizers' library raises its like.
    ],
)
def test_a_full_disk_is_said_in_one_sentence_whichever_library_met_it(tmp_path: Path, error: Exception) -> None:
    words = r"result: cannot be written \(No space left on device\)"
    with pytest.raises(OutputError, match=words), whole_folder(tmp_path / "result"):
        raise error
    assert names(tmp_path) == []


def test_a_place_is_seen_to_be_writable_and_nothing_is_left_there(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder" / "file")
    assert names(tmp_path) == []
    (tmp_path / "new").mkdir()
    (tmp_path / "file").write_text("as it was")
    check_writable(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "as it was"
    for place in (tmp_path / "file" / "below", tmp_path / "new"):
        with pytest.raises(OutputError, match=r"(C|c)hoose another"):
            check_writable(place)
