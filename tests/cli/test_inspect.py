"""`inspect` of a folder and of what strangers wrote into their files."""

from __future__ import annotations

from pathlib import Path

import torch

from hyperdream_core.bundled import bundled_weights
from hyperdream_core.cli.commands.inspect import files_of, format_report, inspect_file
from hyperdream_core.formats.container import write_tensors
from hyperdream_core.formats.identity_file import write_identity
from tests.identities import make_identity


def test_a_bad_file_of_a_folder_does_not_hide_the_good_ones(tmp_path: Path) -> None:
    write_identity(tmp_path / "good.safetensors", make_identity("miniature", scale=0.1))
    (tmp_path / "bad.safetensors").write_bytes(b"[" * 500)
    (tmp_path / "notes.txt").write_text("no file of ours")
    reports = [inspect_file(path) for path in files_of(tmp_path)]
    assert [(Path(one["file"]).name, one["readable"]) for one in reports] == [
        ("bad.safetensors", False),
        ("good.safetensors", True),
    ]
    base = bundled_weights() / "miniature" / "base"
    assert files_of(base) == [base] and files_of(tmp_path / "none") == [tmp_path / "none"]


def test_what_a_stranger_wrote_moves_no_cursor_and_breaks_no_line(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    words = {"kind": "x\x1b[2J\r\n" + "y" * 100_000}
    write_tensors(path, words, {"a\x1b]0;title\x07": torch.zeros(1)})
    report = inspect_file(path)
    shown = format_report(report)
    assert "\x1b" not in shown and "\r" not in shown and "\x07" not in shown and len(shown) < 5000
    assert report["readable"] and len(report["kind"]) < 200
