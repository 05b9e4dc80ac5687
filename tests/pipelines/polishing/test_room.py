"""What the plan for polishing is asked with, and that what it says is done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperdream_core.bases import get_base
from hyperdream_core.pipelines.diffusers.diffusers_base import DiffusersBase
from hyperdream_core.pipelines.polishing import room as rooms
from hyperdream_core.pipelines.polishing.memory import Plan, Room, bytes_needed
from hyperdream_core.pipelines.polishing.polish import polish
from hyperdream_core.pipelines.polishing.polish_config import PolishConfig
from hyperdream_core.pipelines.polishing.room import free_memory, planned, room_for, room_of

FAMILY = get_base("miniature")
SHORT = PolishConfig(steps=2, batch=2, rank=1, preserve=0, file_rank=0, samples_at_once=2)


def test_what_is_preserved_passes_in_samples_of_its_own_and_without_steps_nothing_is_needed() -> None:
    config, room = PolishConfig(batch=2, preserve_batch=3, samples_at_once=8), Room(free=1e9, number_size=4)
    assert planned(FAMILY, config, 64, False, room).samples_at_once == 2
    assert planned(FAMILY, config, 64, True, room).samples_at_once == 3
    nothing = replace(room, free=0.0)
    assert planned(FAMILY, replace(config, steps=0), 64, True, nothing).bytes_needed == 0


def test_weights_elsewhere_take_room_and_those_of_another_kind_are_cast() -> None:
    net = nn.Linear(100, 100, bias=False)
    room = room_for(net, torch.device("meta"), torch.float16, 1e6)
    assert (room.free, room.cast_weights, room.number_size) == (1e6 - 4e4, 2e4, 2)
    assert room_for(net, torch.device("cpu"), torch.float32, 1e6) == Room(free=1e6, number_size=4, device="cpu")


def test_free_memory_is_no_more_than_the_machine_or_its_container_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "_CGROUP", tmp_path)
    machine = free_memory(torch.device("cpu"))
    assert 0 < machine < 2**50
    (tmp_path / "memory.current").write_text("5000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 1000000\n")
    (tmp_path / "memory.max").write_text("6000000\n")
    assert free_memory(torch.device("cpu")) == 2e6
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(torch.device("cpu")) > 2e6
    assert free_memory(torch.device("meta")) == float("inf")


def test_a_base_of_our_own_is_asked_by_its_device_and_a_hosts_by_its_own_account(base: DiffusersBase) -> None:
    assert room_of(base).number_size == 4
    assert room_of(base).idle == room_of(base).cast_weights == 0
    told = Room(free=123.0, number_size=2)

    class Hosted:
        def room(self) -> Room:
            return told

    hosted: Any = Hosted()
    assert room_of(hosted) is told


@pytest.mark.parametrize("target_set", ["attention", "attention+geglu+text"])
def test_computing_twice_and_fewer_at_once_give_the_same_identity(base: DiffusersBase, target_set: str) -> None:
    pictures = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    config = replace(SHORT, target_set=target_set)
    usual = polish(base, pictures, None, config).identity.expand()
    for at_once in (2, 1):
        lean = Plan(samples_at_once=at_once, recomputes=True, size=32, bytes_needed=0.0)
        saving = polish(base, pictures, None, config, plan=lean).identity.expand()
        changes = [(saving[name].up @ saving[name].down, pair.up @ pair.down) for name, pair in usual.items()]
        apart = sum(float((one - other).square().sum()) for one, other in changes)
        assert apart < 1e-5 * sum(float(other.square().sum()) for _, other in changes)
    assert not any("forward" in vars(module) for module in base.unet.modules())


def test_a_job_goes_on_with_its_checkpoint_when_there_is_other_memory(base: DiffusersBase, tmp_path: Path) -> None:
    pictures, file = torch.rand(1, 3, 32, 32), tmp_path / "half.safetensors"
    config = replace(SHORT, steps=3, save_every=1)

    def stop(step: int, steps: int) -> None:
        if step == 2:
            raise KeyboardInterrupt

    assert polish(base, pictures, None, config, stop, checkpoint=file).cancelled
    lean = Plan(samples_at_once=1, recomputes=True, size=32, bytes_needed=0.0)
    steps: list[int] = []
    polish(base, pictures, None, config, lambda step, _: steps.append(step), checkpoint=file, plan=lean)
    assert min(steps) == 2


class Part(nn.Module):
    """A part of a base that says where it is brought."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, device="meta"))
        self.moves: list[str] = []
        self.dtype, self.config = torch.float32, type("Config", (), {"scaling_factor": 1.0})()

    def to(self, device: Any) -> Part:
        self.moves.append(str(device))
        self.weight = nn.Parameter(torch.zeros(1, device=device))
        return self

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def decode(self, latents: Tensor) -> Any:
        return type("Decoded", (), {"sample": latents})()


def test_encoders_leave_the_device_for_the_training_and_come_back_for_whoever_asks(base: DiffusersBase) -> None:
    vae, text = Part(), Part()
    away = replace(base, vae=vae, text_encoders=(text,), unet=nn.Linear(1, 1, device="meta"))
    with away.encoders_away():
        assert vae.moves == text.moves == ["cpu"]
        away.decode_latents(torch.zeros(1, 4, 8, 8, device="meta"))
        assert (vae.moves, text.moves) == (["cpu", "meta", "cpu"], ["cpu"])
    assert (vae.moves[-1], text.moves[-1]) == ("meta", "meta")
    with away.encoders_away(with_text=False):
        assert text.moves == ["cpu", "meta"]
    assert room_of(away).idle == 8
    with base.encoders_away():
        assert base.vae.device.type == "cpu"


def test_the_estimate_grows_with_every_sample_and_shrinks_by_computing_twice() -> None:
    room = Room(free=0, number_size=2)
    one, two = (bytes_needed(get_base("sdxl"), 1024, count, room) for count in (1, 2))
    assert one < two < 2 * one
    assert bytes_needed(get_base("sdxl"), 1024, 1, room, recomputes=True) < one / 4
