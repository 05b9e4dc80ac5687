"""The one job that command line and hosts share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hyperdream_core.errors import BaseMismatchError, Cancelled, ConfigError
from hyperdream_core.faces.prepared_faces import faces_of_crops
from hyperdream_core.identity import Identity
from hyperdream_core.ops.lowrank import LoraPair, delta
from hyperdream_core.pipelines.companions import Companions
from hyperdream_core.pipelines.diffusers.diffusers_base import DiffusersBase
from hyperdream_core.pipelines.make_identity import MakeIdentityConfig, Watch, make_identity
from hyperdream_core.pipelines.polishing.polish import polish
from hyperdream_core.pipelines.polishing.polish_config import PolishConfig
from hyperdream_core.pipelines.predictors.predict import PredictConfig
from hyperdream_core.pipelines.predictors.wants import Wants

FEW = PolishConfig(steps=3, rank=1, batch=1, preserve=0.0)


class Predictor:
    """One person, whoever is asked for."""

    family, fingerprint, training, wants = "miniature", "", {}, Wants(size=16)  # type: ignore[var-annotated]

    def __init__(self, identity: Identity) -> None:
        self.identity, self.network = identity, torch.nn.Identity()

    def predict(
        self, faces: object, config: PredictConfig | None = None, seed: int = 0, candidates: int = 1
    ) -> list[Identity]:
        return [self.identity]

    def neutral(self, config: PredictConfig | None = None) -> Identity:
        return self.identity.scaled(0.0)


@pytest.fixture
def predictor(fresh_identity: Callable[..., Identity]) -> Predictor:
    return Predictor(fresh_identity("miniature", scale=0.1))


def test_it_is_polish_on_what_the_predictor_said(base: DiffusersBase, references: Tensor, predictor: Predictor) -> None:
    made = make_identity(base, faces_of_crops(references), MakeIdentityConfig(polish=FEW, size=32), predictor)
    assert made.predicted is predictor.identity and not made.cancelled and set(made.seconds) == {"predict", "polish"}
    # One sample is all there is, and the order of sums follows from how many may pass at once.
    alone = polish(base, references, predictor.identity, replace(FEW, samples_at_once=1))
    assert made.losses == alone.losses and len(made.losses) == 3
    for name, coefficients in alone.identity.coefficients.items():
        assert torch.equal(made.identity.coefficients[name].up, coefficients.up)


def test_steps_follow_from_whether_there_is_a_prediction() -> None:
    assert (PolishConfig().steps_from(True), PolishConfig().steps_from(False)) == (40, 200)
    assert PolishConfig(steps=7).steps_from(False) == PolishConfig(steps=7).steps_from(True) == 7


def test_the_watcher_sees_the_adapter_grow(base: DiffusersBase, references: Tensor, predictor: Predictor) -> None:
    seen: list[tuple[int, int, Tensor]] = []

    def watch(step: int, steps: int, current: Callable[[], Mapping[str, LoraPair]]) -> None:
        pair = next(iter(current().values()))
        assert not pair.down.requires_grad
        seen.append((step, steps, delta(pair)))

    config = MakeIdentityConfig(polish=FEW, size=32)
    made = make_identity(base, faces_of_crops(references), config, predictor, watch=Watch(polishing=watch))
    assert [(step, steps) for step, steps, _ in seen] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    first, last = (next(iter(one.expand().values())) for one in (predictor.identity, made.identity))
    torch.testing.assert_close(seen[0][2], delta(first))
    torch.testing.assert_close(seen[3][2], delta(last), atol=1e-5, rtol=1e-3)
    assert not torch.equal(seen[1][2], seen[0][2])


def test_a_watcher_that_stops_keeps_the_best_so_far(
    base: DiffusersBase, references: Tensor, predictor: Predictor
) -> None:
    def stop(step: int, steps: int, current: object) -> None:
        if step == 2:
            raise Cancelled("enough")

    config = MakeIdentityConfig(polish=FEW, size=32)
    made = make_identity(base, faces_of_crops(references), config, predictor, watch=Watch(polishing=stop))
    assert made.cancelled and len(made.losses) == 2 and made.how == "predicted and polished for 2 steps"


def test_captions_are_read_off_where_somebody_can(base: DiffusersBase, references: Tensor) -> None:
    asked: list[tuple[int, ...]] = []

    def describe(_: object, pictures: Tensor) -> list[str]:
        asked.append(tuple(pictures.shape))
        return ["sad"] * len(pictures)

    config, faces = MakeIdentityConfig(polish=FEW, size=32), faces_of_crops(references)
    companions = Companions(describe=describe)
    assert make_identity(base, faces, config, companions=companions).captions == ("sad", "sad")
    # The words were learnt at the base's own size.
    assert asked == [(2, 3, 64, 64)]
    told = MakeIdentityConfig(polish=FEW, size=32, captions=("calm", ""))
    assert make_identity(base, faces, told, companions=companions).captions == ("calm", "") and len(asked) == 1
    assert make_identity(base, faces, config).captions == ()


def test_what_cannot_be_done_is_refused_before_the_work(
    base: DiffusersBase, references: Tensor, predictor: Predictor
) -> None:
    faces = faces_of_crops(references)
    nothing = MakeIdentityConfig(polish=PolishConfig(steps=0))
    with pytest.raises(ConfigError, match="no predictor for the miniature and the polishing steps are 0"):
        make_identity(base, faces, nothing)
    assert make_identity(base, faces, nothing, predictor).identity is predictor.identity
    predictor.family = "sd15"
    with pytest.raises(BaseMismatchError, match="trained for 'sd15', but the base is 'miniature'"):
        make_identity(base, faces, nothing, predictor)
    with pytest.raises(ConfigError, match="multiple of 8 from 32 to 4096"):
        make_identity(base, faces, MakeIdentityConfig(size=33))


def test_a_card_that_is_too_small_is_one_sentence(
    base: DiffusersBase, references: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_small(*_: object, **__: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("hyperdream_core.pipelines.make_identity.polish", too_small)
    with pytest.raises(ConfigError, match="ran out of memory while polishing at 32 px with 1 sample at once; take"):
        make_identity(base, faces_of_crops(references), MakeIdentityConfig(polish=FEW, size=32))
