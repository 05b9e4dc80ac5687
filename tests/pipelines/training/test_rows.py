"""Training by rows: the result follows from the global batch, whatever is computed at once, by however many."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hyperdream_core.errors import ConfigError
from hyperdream_core.formats.container import read_container
from hyperdream_core.pipelines.training.checkpoint import CHECKPOINT
from hyperdream_core.pipelines.training.launch import launch
from hyperdream_core.pipelines.training.loop import Moment, TrainingConfig, is_main_process, train

CONFIG = TrainingConfig(steps=6, warmup=2, learning_rate=0.1, save_every=2, batch=5)
ROUNDING = {"atol": 1e-6, "rtol": 1e-5}


class Curve(nn.Module):
    """Mean square error of a small network through points."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.layers = nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 1))

    def forward(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        return (self.layers(batch).squeeze(-1) - batch.square().sum(-1)).square().mean()


@dataclass(frozen=True)
class Points:
    points: Tensor

    def rows(self, chosen: range) -> Tensor:
        return self.points[chosen.start : chosen.stop]


def draw(generator: torch.Generator) -> Points:
    return Points(torch.randn(CONFIG.batch, 3, generator=generator))


def weights(checkpoint: Path, config: TrainingConfig = CONFIG) -> Tensor:
    curve = Curve()
    train(curve, draw, config, checkpoint)
    return torch.cat([p.detach().reshape(-1) for p in curve.parameters()])


@pytest.mark.parametrize("micro_batch", [1, 2, 5, 9])
def test_what_is_computed_at_once_changes_nothing_but_rounding(micro_batch: int, tmp_path: Path) -> None:
    at_once = weights(tmp_path / "at-once")
    assert not torch.equal(at_once, weights(tmp_path / "another", replace(CONFIG, seed=1)))
    in_parts = weights(tmp_path / "parts", replace(CONFIG, micro_batch=micro_batch))
    torch.testing.assert_close(in_parts, at_once, **ROUNDING)


def test_a_step_is_one_of_the_whole_batch(tmp_path: Path) -> None:
    from hyperdream_core.pipelines.training.schedule import learning_rate, step_generator

    curve = Curve()
    optimizer = torch.optim.AdamW(curve.parameters(), lr=1.0, betas=CONFIG.betas, weight_decay=CONFIG.weight_decay)
    losses = []
    for step in range(CONFIG.steps):
        loss = curve(draw(step_generator(CONFIG.seed, step)).points, torch.Generator())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(curve.parameters(), CONFIG.clip)
        optimizer.param_groups[0]["lr"] = learning_rate(step, CONFIG)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    trained = Curve()
    got = train(trained, draw, replace(CONFIG, micro_batch=2, ema_share=0.0), tmp_path / "checkpoint")
    torch.testing.assert_close(torch.tensor(got), torch.tensor(losses), **ROUNDING)
    for ours, theirs in zip(trained.parameters(), curve.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, **ROUNDING)


class Stop(Exception):
    pass


def _stop_after_three(moment: Moment) -> None:
    if moment.step == 3 and is_main_process():
        raise ConfigError("enough")


def _train(place: Path, stops: bool) -> None:
    train(Curve(), draw, CONFIG, place, watch=_stop_after_three if stops else None)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_training_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    at_once = weights(tmp_path / "at-once")
    for first, then in ((1, 2), (2, 1)):
        place = tmp_path / f"{first}-{then}"
        with pytest.raises(ConfigError, match="enough"):
            launch(_train, (place, True), first)
        assert float(read_container(place, CHECKPOINT, 1)[1]["step"]) == 3
        launch(_train, (place, False), then)
        torch.testing.assert_close(weights(place), at_once, **ROUNDING)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("killed_at", [1, 2, 5])
def test_a_training_killed_at_any_step_comes_to_the_same_bytes(killed_at: int, tmp_path: Path) -> None:
    def kill(moment: Moment) -> None:
        if moment.step == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        train(Curve(), draw, CONFIG, tmp_path / "killed", watch=kill)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (tmp_path / "killed").exists() == (killed_at >= CONFIG.save_every)
    _train(tmp_path / "killed", False)
    _train(tmp_path / "at-once", False)
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "at-once").read_bytes()


class Filter(nn.Module):
    """A convolution whose weights lie in memory channels last."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.filter = nn.Conv2d(3, 5, 2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        return (self.filter(batch) - batch.sum((1, 2, 3), keepdim=True)).square().mean()


@dataclass(frozen=True)
class Images:
    images: Tensor

    def rows(self, chosen: range) -> Tensor:
        return self.images[chosen.start : chosen.stop].to(memory_format=torch.channels_last)


def _train_filter(place: Path, stops: bool = False) -> None:
    filter_ = Filter()
    watch = _stop_after_three if stops else None
    train(filter_, lambda g: Images(torch.randn(CONFIG.batch, 3, 4, 4, generator=g)), CONFIG, place, watch=watch)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_weights_that_lie_otherwise_in_memory_learn_alike(tmp_path: Path) -> None:
    _train_filter(tmp_path / "at-once")
    with pytest.raises(ConfigError, match="enough"):
        _train_filter(tmp_path / "stopped", stops=True)
    _train_filter(tmp_path / "stopped")
    assert (tmp_path / "stopped").read_bytes() == (tmp_path / "at-once").read_bytes()
    launch(_train_filter, (tmp_path / "two",), 2)
    one, two = (read_container(tmp_path / name, CHECKPOINT, 1)[1] for name in ("at-once", "two"))
    torch.testing.assert_close(two["weight/filter.weight"], one["weight/filter.weight"], **ROUNDING)


def _fail_in_the_second(place: Path) -> None:
    def draw_or_fail(generator: torch.Generator) -> Points:
        nonlocal calls
        calls += 1
        if calls == 5 and not is_main_process():
            raise ConfigError("the second has no more points")
        return draw(generator)

    calls = 0
    try:
        train(Curve(), draw_or_fail, CONFIG, place)
    except Exception as error:
        (place.parent / f"{is_main_process()}.txt").write_text(str(error))
        raise


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_an_error_in_one_process_stops_all_before_the_same_step_and_nothing_is_lost(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^the second has no more points$"):
        launch(_fail_in_the_second, (tmp_path / "checkpoint",), 2)
    assert (tmp_path / "True.txt").read_text() == "process 2 of 2 has failed: the second has no more points"
    assert float(read_container(tmp_path / "checkpoint", CHECKPOINT, 1)[1]["step"]) == 4


def test_bfloat16_learns_the_same_but_for_its_rounding(tmp_path: Path) -> None:
    full, half = weights(tmp_path / "fp32"), weights(tmp_path / "bf16", replace(CONFIG, precision="bf16"))
    assert not torch.equal(full, half)
    torch.testing.assert_close(half, full, atol=0.05, rtol=0.05)
    assert read_container(tmp_path / "bf16", CHECKPOINT, 1)[1]["weight/layers.0.weight"].dtype == torch.float32


def test_float16_without_a_gpu_is_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="precision fp16 needs a GPU; use bf16 or fp32 on a CPU"):
        weights(tmp_path / "checkpoint", replace(CONFIG, precision="fp16"))
    assert not (tmp_path / "checkpoint").exists()


def test_more_processes_than_gpus_are_refused() -> None:
    there = torch.cuda.device_count()
    with pytest.raises(ConfigError, match=f"{there + 2} processes need as many GPUs, and {there} can be used here"):
        launch(_train, (Path(), False), there + 2, "cuda")


def test_a_gradient_scaler_goes_on_where_it_was(tmp_path: Path) -> None:
    from hyperdream_core.pipelines.training.checkpoint import TrainingCheckpoint

    def checkpoint() -> TrainingCheckpoint:
        line = nn.Linear(2, 1)
        trained = dict(line.named_parameters())
        averaged = {name: p.detach().clone() for name, p in trained.items()}
        saved = TrainingCheckpoint(tmp_path / "checkpoint", {}, trained, averaged, torch.optim.AdamW(line.parameters()))
        saved.scaler = Scaler()
        return saved

    class Scaler:
        def __init__(self) -> None:
            self.state = {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 0}

        def state_dict(self) -> dict[str, float]:
            return dict(self.state)

        def load_state_dict(self, state: dict[str, float]) -> None:
            self.state = state

    first, second = checkpoint(), checkpoint()
    first.scaler.state |= {"scale": 1024.0, "_growth_tracker": 17}
    first.save(3)
    assert second.resume() == 3
    assert second.scaler.state == first.scaler.state


def test_a_compiled_objective_gives_the_same(tmp_path: Path) -> None:
    compiled = weights(tmp_path / "compiled", replace(CONFIG, compiler="eager"))
    torch.testing.assert_close(compiled, weights(tmp_path / "plain"), **ROUNDING)


def test_the_objectives_context_is_open_until_the_gradient_is_there(tmp_path: Path) -> None:
    seen: list[bool] = []

    class Held(Curve):
        is_open = False

        @contextmanager
        def held(self) -> Iterator[None]:
            self.is_open = True
            yield
            self.is_open = False

        def forward(self, batch: Tensor, generator: torch.Generator) -> Tensor:
            loss = super().forward(batch, generator)
            loss.register_hook(lambda gradient: seen.append(self.is_open))
            return loss

    train(Held(), draw, replace(CONFIG, steps=2, micro_batch=3), tmp_path / "checkpoint")
    assert seen == [True] * 4


def test_who_watches_sees_the_averaged_weights_and_changes_nothing(tmp_path: Path) -> None:
    curve, steps = Curve(), []

    def watch(moment: Moment) -> None:
        own = [p.detach().clone() for p in curve.parameters()]
        with moment.averaged():
            steps.append((moment.step, all(torch.equal(a, b) for a, b in zip(own, curve.parameters(), strict=True))))
        assert all(torch.equal(a, b) for a, b in zip(own, curve.parameters(), strict=True))

    losses = train(curve, draw, replace(CONFIG, ema_share=0.5), tmp_path / "watched", watch=watch)
    assert losses == train(Curve(), draw, replace(CONFIG, ema_share=0.5), tmp_path / "plain")
    assert [step for step, _ in steps] == [1, 2, 3, 4, 5, 6]
    assert [same for _, same in steps] == [True, False, False, False, False, False]
