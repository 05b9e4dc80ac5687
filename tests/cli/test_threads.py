from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hyperdream_core.cli import threads
from hyperdream_core.cli.base_flags import BaseChoice
from hyperdream_core.cli.console import Console
from hyperdream_core.cli.threads import free_threads, use_threads_for

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _threads_stay() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """Eight idle cores, and no container's quota."""
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(threads.os, "getloadavg", lambda: (0.1, 0.0, 0.0), raising=False)
    monkeypatch.setattr(threads, "_QUOTA", tmp_path / "cpu.max")
    yield monkeypatch


def test_the_miniature_computes_with_one_thread_and_a_larger_base_with_all_idle_cores(machine: object) -> None:
    use_threads_for("sd15", CPU)
    assert torch.get_num_threads() == 8
    use_threads_for("miniature", CPU)
    assert torch.get_num_threads() == 1


def test_on_another_device_the_threads_are_left_alone() -> None:
    use_threads_for("miniature", torch.device("meta"))
    assert torch.get_num_threads() == 8


@pytest.mark.parametrize(("load", "expected"), [(0.0, 8), (1.2, 7), (6.4, 2), (7.9, 1), (30.0, 1)])
def test_cores_that_others_use_are_left_to_them(machine: pytest.MonkeyPatch, load: float, expected: int) -> None:
    machine.setattr(threads.os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    assert free_threads(64) == expected


def test_neither_affinity_nor_quota_nor_what_was_asked_for_is_exceeded(
    machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert free_threads(3) == 3
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert free_threads(64) == 8
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert free_threads(64) == 2
    machine.setattr(threads.os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert free_threads(64) == 1


def test_a_system_that_says_nothing_gets_its_cores(machine: pytest.MonkeyPatch) -> None:
    machine.delattr(threads.os, "sched_getaffinity", raising=False)
    machine.delattr(threads.os, "getloadavg", raising=False)
    assert free_threads(64) == 8


def test_a_command_sets_them_when_it_loads_its_base() -> None:
    BaseChoice(source="miniature", device="cpu", dtype="fp32").load(Console())
    assert torch.get_num_threads() == 1
