"""Programs that are started on this machine: where they listen, and what they take."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""of this checkout"""


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def processor_seconds(process_id: int) -> float:
    """User and system time that a process has taken."""
    # The command's name may hold spaces; the two are the 12th and 13th entry after it.
    entries = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(entries[11]) + int(entries[12])) / os.sysconf("SC_CLK_TCK")


def memory(process_id: int, entry: str) -> float:
    """MB of a process: VmRSS is what it holds now, VmHWM the most it has held since `forget_peak`."""
    found = re.search(rf"{entry}:\s+(\d+) kB", Path(f"/proc/{process_id}/status").read_text())
    assert found is not None, entry
    return int(found[1]) / 1e3


def forget_peak(process_id: int) -> None:
    """Let a process's largest memory begin anew at what it holds now."""
    # The number stands for just that.
    Path(f"/proc/{process_id}/clear_refs").write_text("5")
