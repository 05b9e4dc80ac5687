"""Threads on one base: each gets what it would have got alone, and the base is as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperdream_core.errors import Cancelled, ConfigError
from hyperdream_core.identity import Identity
from hyperdream_core.models.adapted_linear import live, merged
from hyperdream_core.models.one_thread import alone_with, while_waiting
from hyperdream_core.ops.lowrank import LoraPair
from hyperdream_core.pipelines.base import frozen
from hyperdream_core.pipelines.diffusers.diffusers_base import DiffusersBase
from hyperdream_core.pipelines.diffusers.loading import load_base
from hyperdream_core.pipelines.drawing.draw import DrawConfig, draw
from hyperdream_core.pipelines.polishing.polish import polish
from hyperdream_core.pipelines.polishing.polish_config import PolishConfig
from hyperdream_core.pipelines.predictors.predictor import open_predictor

SMALL = DrawConfig(steps=3, size=32, seed=1)
SHORT = PolishConfig(steps=2, batch=2, rank=2, preserve=0, file_rank=0)


def results_of(jobs: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """What each job gives, or raises, all in threads that begin together."""
    begin, found = threading.Barrier(len(jobs)), dict[str, Any]()

    def work(name: str, job: Callable[[], Any]) -> None:
        begin.wait()
        try:
            found[name] = job()
        except BaseException as error:
            found[name] = error

    threads = [threading.Thread(target=work, args=item, daemon=True) for item in jobs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(500)
    return found


def state(base: DiffusersBase) -> list[Any]:
    """Weights, flags, and whatever else hangs on the networks."""
    modules = [module for network in base.modules() for module in network.modules()]
    weights = [tensor.clone() for network in base.modules() for tensor in network.state_dict().values()]
    flags = [module.training for module in modules] + [
        weight.requires_grad for network in base.modules() for weight in network.parameters()
    ]
    return [weights, flags, ["forward" in module.__dict__ for module in modules]]


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other), (one, other)
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, Identity):
        for name, layer in one.coefficients.items():
            assert torch.equal(layer.up, other.coefficients[name].up), name
            assert torch.equal(layer.down, other.coefficients[name].down), name
    elif isinstance(one, list):
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one == other


def drawing(base: DiffusersBase, who: Identity | None, seed: int = 1) -> Callable[[], Tensor]:
    return lambda: draw(base, ["a sks face"], who, DrawConfig(steps=2, size=32, seed=seed, guidance_scale=1.0))


def polishing(base: DiffusersBase, references: Tensor, seed: int, start: Identity | None = None) -> Callable[[], Any]:
    config = PolishConfig(steps=2, batch=1, rank=2, preserve=0, file_rank=0, seed=seed)
    return lambda: polish(base, references[:1], start, config).identity


@pytest.fixture
def somebody(base: DiffusersBase, references: Tensor) -> Identity:
    return polish(base, references, config=PolishConfig(steps=1, batch=1, rank=1, learning_rate=0.5)).identity.scaled(
        3.0
    )


def assert_as_alone(base: DiffusersBase, jobs: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    before, alone = state(base), {name: job() for name, job in jobs.items()}
    found = results_of(jobs)
    for name in jobs:
        assert_same(found[name], alone[name])
    assert_same(state(base), before)
    return alone


def test_two_threads_that_draw_two_people_get_each_their_own(base: DiffusersBase, somebody: Identity) -> None:
    jobs = {"one": drawing(base, somebody), "other": drawing(base, somebody.scaled(-1.0))}
    alone = assert_as_alone(base, {**jobs, "the base": drawing(base, None)})
    assert not torch.equal(alone["one"], alone["other"])
    assert not torch.equal(alone["one"], alone["the base"])


def test_two_threads_polish_as_each_would_alone(base: DiffusersBase, references: Tensor) -> None:
    assert_as_alone(base, {str(seed): polishing(base, references, seed) for seed in (1, 2)})


def test_one_thread_draws_while_another_polishes(base: DiffusersBase, references: Tensor, somebody: Identity) -> None:
    jobs = {"polished": polishing(base, references, 1, somebody), "drawn": drawing(base, somebody, 5)}
    assert_as_alone(base, jobs)


@pytest.mark.slow
def test_eight_draw_and_four_polish_on_one_base(base: DiffusersBase, references: Tensor, somebody: Identity) -> None:
    people = [None, somebody, somebody.scaled(2.0), somebody.scaled(-2.0)]
    jobs = {f"draws {index}": drawing(base, people[index % 4], index) for index in range(8)}
    jobs |= {f"polishes {seed}": polishing(base, references, seed, somebody if seed % 2 else None) for seed in range(4)}
    assert_as_alone(base, jobs)


def test_flags_come_back_when_the_last_of_several_threads_has_gone(base: DiffusersBase) -> None:
    module = base.unet.mid_block
    module.train(True).requires_grad_(True)
    try:
        first, second = frozen(base), frozen(base)
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert not module.training
        assert not any(weight.requires_grad for weight in module.parameters())
        second.__exit__(None, None, None)
        assert module.training
        assert all(weight.requires_grad for weight in module.parameters())
    finally:
        module.train(False).requires_grad_(False)


class Held:
    """Another thread that holds something until it is told otherwise."""

    def __init__(self, open_context: Callable[[], Any]) -> None:
        self.let_go, held = threading.Event(), threading.Event()

        def hold() -> None:
            with open_context():
                held.set()
                self.let_go.wait(30)

        self.thread = threading.Thread(target=hold, daemon=True)
        self.thread.start()
        assert held.wait(30)

    def end(self) -> None:
        self.let_go.set()
        self.thread.join(30)


@pytest.mark.parametrize("change", [live, merged])
def test_a_call_waits_for_another_threads_change(change: Any) -> None:
    layer = nn.Sequential(nn.Linear(2, 2, bias=False)).requires_grad_(False)
    pairs = {"0": LoraPair(torch.ones(1, 2), torch.ones(2, 1))}
    x = torch.ones(1, 2)
    base_alone, other = layer(x), Held(lambda: change(layer, pairs))
    looks = list[int]()

    def look() -> None:
        looks.append(1)
        other.end()

    with while_waiting(look), live(layer, {}):
        assert torch.equal(layer(x), base_alone)
    assert looks


def test_a_drawing_that_waits_for_the_base_can_be_cancelled(base: DiffusersBase) -> None:
    other = Held(lambda: alone_with(base.modules()))
    calls = list[tuple[int, int]]()

    def stop(step: int, steps: int) -> None:
        calls.append((step, steps))
        if len(calls) > 2:
            raise Cancelled("stopped")

    try:
        with pytest.raises(Cancelled):
            draw(base, ["a face"], None, SMALL, stop)
        assert set(calls) == {(0, 3)}
    finally:
        other.end()


def test_a_polishing_that_waits_for_the_base_can_be_cancelled(base: DiffusersBase, references: Tensor) -> None:
    other = Held(lambda: alone_with(base.modules()))

    def stop(step: int, steps: int) -> None:
        raise Cancelled("stopped")

    try:
        with pytest.raises(Cancelled):
            polish(base, references, config=SHORT, progress=stop)
    finally:
        other.end()


def test_claims_against_each_others_order_are_refused_instead_of_waiting_for_ever() -> None:
    one, two = nn.Linear(1, 1), nn.Linear(1, 1)
    both = threading.Barrier(2)

    def job(first: nn.Module, second: nn.Module) -> Callable[[], str]:
        def work() -> str:
            with alone_with([first]):
                both.wait(30)
                with alone_with([second]):
                    return "done"

        return work

    found = results_of({"a": job(one, two), "b": job(two, one)})
    refused = [error for error in found.values() if isinstance(error, ConfigError)]
    assert len(refused) == 1
    assert "run one job after the other" in str(refused[0])
    assert "done" in found.values()


def test_a_thread_that_ended_with_a_change_open_is_named() -> None:
    layer = nn.Linear(1, 1)
    never_closed = alone_with([layer])
    thread = threading.Thread(target=never_closed.__enter__)
    thread.start()
    thread.join()
    with pytest.raises(ConfigError, match="a thread that has ended"), alone_with([layer]):
        pass
    never_closed.__exit__(None, None, None)


def test_waiting_threads_take_turns() -> None:
    layer, turns = nn.Linear(1, 1), list[str]()

    def job(name: str) -> Callable[[], None]:
        def work() -> None:
            for _ in range(5):
                with alone_with([layer]):
                    turns.append(name)
                    # Until the other one waits, which it does unless it is through.
                    for _ in range(10_000):
                        if len(turns) > 8 or _waits():
                            break

        return work

    def _waits() -> bool:
        from hyperdream_core.models.one_thread import _CLAIMS

        return bool(_CLAIMS.waiting)

    results_of({"a": job("a"), "b": job("b")})
    assert max(len(run) for run in "".join(turns).replace("ab", "a b").replace("ba", "b a").split()) <= 2, turns


def test_a_base_and_a_predictor_are_loaded_in_threads_as_alone() -> None:
    def weights(modules: Any) -> list[Tensor]:
        return [tensor for module in modules for _, tensor in sorted(module.state_dict().items())]

    jobs: dict[str, Callable[[], Any]] = {
        "base": lambda: weights(load_base().modules()),
        "other base": lambda: weights(load_base().modules()),
        "predictor": lambda: weights([open_predictor("miniature").network]),
    }
    found = results_of(jobs)
    assert_same(found["base"], found["other base"])
    for name in ("base", "predictor"):
        assert_same(found[name], jobs[name]())
