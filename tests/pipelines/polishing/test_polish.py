from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hyperdream_core.errors import BaseMismatchError, Cancelled, ConfigError, ReferenceImageError
from hyperdream_core.identity import Identity, truncated
from hyperdream_core.ops import lidb
from hyperdream_core.pipelines.diffusers.diffusers_base import DiffusersBase
from hyperdream_core.pipelines.polishing.denoising_error import Samples, row_errors
from hyperdream_core.pipelines.polishing.polish import polish, polish_batch
from hyperdream_core.pipelines.polishing.polish_config import PolishConfig
from hyperdream_core.pipelines.polishing.preservation import CONTEXTS
from hyperdream_core.pipelines.polishing.training_pictures import encode_pictures
from hyperdream_core.pipelines.training.loop import step_generator

CONFIG = PolishConfig(file_rank=0, steps=3, rank=2, batch=2, crops=1, learning_rate=0.01)


def bits(base: DiffusersBase) -> list[Tensor]:
    return [tensor.clone() for module in base.modules() for tensor in module.state_dict().values()]


def flags(base: DiffusersBase) -> list[bool]:
    modules = [part for module in base.modules() for part in module.modules()]
    return [part.training for part in modules] + [p.requires_grad for part in modules for p in part.parameters()]


def assert_same(first: Identity, second: Identity) -> None:
    assert first.coefficients.keys() == second.coefficients.keys()
    for name, one in first.coefficients.items():
        other = second.coefficients[name]
        assert torch.equal(one.up, other.up) and torch.equal(one.down, other.down), name


@pytest.fixture(scope="module")
def polished(base: DiffusersBase) -> Identity:
    pictures = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(8))
    return polish(base, pictures, config=CONFIG).identity


def test_training_lowers_the_loss_on_its_picture(base: DiffusersBase, references: Tensor) -> None:
    def loss(rate: float) -> Tensor:
        # In nearly pure noise there is one thing to learn, whatever the draw: the picture.
        config = PolishConfig(steps=12, rank=4, batch=1, crops=0, learning_rate=rate, noise_power=50.0)
        return torch.tensor(polish(base, references[:1], config=config).losses)

    # Step by step against a rate too small to learn: the same draws, whose noise levels decide most of the loss.
    untrained, trained = loss(1e-9), loss(0.03)
    assert trained[0] == untrained[0]
    assert (trained[6:] / untrained[6:]).mean() < 0.95


def test_the_base_is_as_it_was_bit_for_bit(base: DiffusersBase, references: Tensor) -> None:
    base.unet.mid_block.train(True).requires_grad_(True)
    before, before_flags = bits(base), flags(base)
    try:
        polish(base, references, config=CONFIG)
        assert flags(base) == before_flags
        assert all(torch.equal(one, other) for one, other in zip(before, bits(base), strict=True))
        assert all(p.grad is None for module in base.modules() for p in module.parameters())
        assert not any("forward" in part.__dict__ for part in base.unet.modules())
    finally:
        base.unet.mid_block.train(False).requires_grad_(False)


def test_the_same_seed_gives_the_same_bits_and_another_one_others(base: DiffusersBase, references: Tensor) -> None:
    runs = [
        polish(base, references, config=PolishConfig(steps=2, rank=1, batch=1, crops=1, seed=seed)).identity
        for seed in (5, 5, 6)
    ]
    assert_same(runs[0], runs[1])
    with pytest.raises(AssertionError):
        assert_same(runs[0], runs[2])


def test_a_start_is_kept_and_the_fresh_rank_is_added(
    base: DiffusersBase, references: Tensor, polished: Identity
) -> None:
    result = polish(base, references, polished, CONFIG)
    assert result.identity.rank == polished.rank + CONFIG.rank
    for name, start in polished.coefficients.items():
        assert torch.equal(result.identity.coefficients[name].down[: polished.rank], start.down)
        assert torch.equal(result.identity.coefficients[name].up[:, : polished.rank], start.up)


def test_the_first_step_sees_the_start(base: DiffusersBase, references: Tensor, polished: Identity) -> None:
    one = PolishConfig(steps=1, rank=1, batch=2, crops=0)
    doubled = polished.scaled(200.0)
    assert polish(base, references, doubled, one).losses != polish(base, references, None, one).losses


def test_many_subjects_at_once_are_trained_as_each_alone(
    base: DiffusersBase, references: Tensor, polished: Identity
) -> None:
    pictures, starts = [references[:1], references, references[1:]], [None, polished, None]
    together = polish_batch(base, pictures, starts, CONFIG, subjects_at_once=2)
    for one, start, identity in zip(pictures, starts, together, strict=True):
        alone = polish(base, one, start, CONFIG).identity
        size, distance = 0.0, 0.0
        for name, c in alone.coefficients.items():
            size += float(lidb.core_distance(c, lidb.scale(c, 0.0)))
            distance += float(lidb.core_distance(c, identity.coefficients[name]))
        # Batched products sum in another order, and Adam's first steps divide by gradients near zero.
        assert distance < 0.01 * size


@pytest.mark.parametrize("stop", [Cancelled, KeyboardInterrupt])
def test_cancelling_keeps_what_there_is(base: DiffusersBase, references: Tensor, stop: type[BaseException]) -> None:
    def progress(step: int, total: int) -> None:
        if step == 2:
            raise stop("enough")

    result = polish(base, references, config=CONFIG, progress=progress)
    assert result.cancelled and len(result.losses) == 2
    whole = polish(base, references, config=CONFIG)
    assert not whole.cancelled and whole.losses[:2] == result.losses


def test_a_hosts_own_interrupt_passes_and_leaves_the_base_clean(base: DiffusersBase, references: Tensor) -> None:
    def progress(step: int, total: int) -> None:
        if step == 1:
            raise RuntimeError("host")

    with pytest.raises(RuntimeError, match="host"):
        polish(base, references, config=CONFIG, progress=progress)
    assert not any("forward" in part.__dict__ for part in base.unet.modules())


def test_a_resumed_job_ends_like_an_uninterrupted_one(
    base: DiffusersBase, references: Tensor, polished: Identity, tmp_path: Path
) -> None:
    config = PolishConfig(steps=5, rank=1, batch=1, crops=0, save_every=2, holdout_every=2)

    def progress(step: int, total: int) -> None:
        if step == 3:
            raise Cancelled("enough")

    file = tmp_path / "new" / "job.safetensors"
    assert polish(base, references, polished, config, progress, file).cancelled
    assert file.exists()
    with pytest.raises(ConfigError, match=r"job\.safetensors is the checkpoint of another job"):
        polish(base, references, None, config, checkpoint=file)
    resumed = polish(base, references, polished, config, checkpoint=file)
    whole = polish(base, references, polished, config)
    assert resumed.losses == whole.losses
    assert_same(resumed.identity, whole.identity)
    assert not file.exists()


def test_progress_counts_every_step(base: DiffusersBase, references: Tensor) -> None:
    seen: list[tuple[int, int]] = []
    polish(base, references, config=CONFIG, progress=lambda step, total: seen.append((step, total)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_held_out_looks_stop_early_and_keep_the_best(base: DiffusersBase, references: Tensor) -> None:
    # At this rate training destroys the network, so that the first looks are the best.
    wild = PolishConfig(steps=12, rank=2, batch=1, crops=0, learning_rate=0.9, holdout_every=1, patience=1)
    result = polish(base, references, config=wild)
    assert len(result.losses) < 12
    one = PolishConfig(steps=12, rank=2, batch=1, crops=0, learning_rate=0.9)
    steps = len(result.losses) - wild.patience

    def progress(step: int, total: int) -> None:
        if step == steps:
            raise Cancelled("where the best was")

    assert_same(result.identity, polish(base, references, config=one, progress=progress).identity)


def test_the_anchor_pulls_towards_the_prediction(base: DiffusersBase, references: Tensor, polished: Identity) -> None:
    def distance(anchor: float) -> float:
        config = PolishConfig(steps=4, rank=1, batch=1, crops=0, learning_rate=0.03, anchor=anchor)
        moved = polish(base, references, polished, config).identity
        return sum(float(lidb.core_distance(c, polished.coefficients[n])) for n, c in moved.coefficients.items())

    assert distance(100.0) < 0.5 * distance(0.0)


def test_preserving_keeps_other_contexts_as_the_start_draws_them(
    base: DiffusersBase, references: Tensor, polished: Identity
) -> None:
    prompts = base.encode_prompt([f"a sks face, {context}" for context in CONTEXTS])
    noise = torch.randn(len(CONTEXTS), *base.encode_image(references[:1]).shape[1:], generator=step_generator(3, 0))
    t = torch.ones(len(CONTEXTS))

    @torch.no_grad()
    def drift(preserve: float) -> float:
        config = PolishConfig(
            steps=8, rank=2, batch=1, crops=0, learning_rate=0.03, noise_power=50.0, preserve=preserve, file_rank=0
        )
        with torch.enable_grad():
            moved = polish(base, references[:1], polished, config).identity
        outputs = []
        for identity in (polished, moved):
            with base.adapted(identity.expand()):
                outputs.append(base.predict(noise, t, prompts))
        return float((outputs[1] - outputs[0]).square().mean())

    assert drift(30.0) < 0.7 * drift(0.0)


def test_without_a_start_nothing_is_preserved(base: DiffusersBase, references: Tensor) -> None:
    with_it, without = (polish(base, references, None, replace(CONFIG, preserve=p)).identity for p in (1.0, 0.0))
    assert_same(with_it, without)


def test_fewer_samples_at_once_give_the_same_up_to_rounding(
    base: DiffusersBase, references: Tensor, polished: Identity
) -> None:
    whole, parts = (
        polish(base, references, polished, replace(CONFIG, batch=3, samples_at_once=count)) for count in (8, 2)
    )
    torch.testing.assert_close(torch.tensor(parts.losses), torch.tensor(whole.losses), rtol=1e-3, atol=1e-5)


def test_drawing_what_is_preserved_can_be_cancelled(
    base: DiffusersBase, references: Tensor, polished: Identity
) -> None:
    calls: list[int] = []

    def progress(step: int, total: int) -> None:
        calls.append(step)
        if len(calls) == 3:
            raise Cancelled("enough")

    result = polish(base, references, polished, CONFIG, progress)
    assert result.cancelled and not result.losses and result.identity is polished


def test_file_rank_is_reached_as_closely_as_can_be(base: DiffusersBase, references: Tensor, polished: Identity) -> None:
    whole = polish(base, references, polished, CONFIG).identity
    small = polish(base, references, polished, replace(CONFIG, file_rank=3)).identity
    assert (whole.rank, small.rank) == (4, 3)
    assert_same(small, truncated(whole, 3))


def test_no_steps_give_the_prediction_back(base: DiffusersBase, references: Tensor, polished: Identity) -> None:
    assert polish(base, references, polished, PolishConfig(steps=0)).identity is polished


def test_text_encoder_layers_are_trained_too(base: DiffusersBase, references: Tensor) -> None:
    config = PolishConfig(
        steps=2, rank=1, batch=2, crops=0, learning_rate=0.01, target_set="attention+geglu+text", class_noun="pet"
    )
    identities = polish_batch(base, [references, references[:1]], [None, None], config)
    text = [name for name in identities[0].coefficients if name.startswith("text_encoder.")]
    assert len(text) == 8 and identities[0].class_noun == "pet"
    # The last layer's projections reach the output at the very first step.
    assert all(identities[0].coefficients[name].up.abs().max() > 0 for name in text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rank": 0}, "rank must be 1 or more, got 0"),
        ({"steps": -1}, "steps must be 0 or more, got -1"),
        ({"learning_rate": 0.0}, "learning_rate must lie between 0 and 1, got 0.0"),
        ({"noise_power": 0.0}, "noise_power must be above 0"),
        ({"jitter": 0.3}, "jitter must lie in 0..0.25, got 0.3"),
        ({"target_set": "all"}, "unknown target set 'all'; known: attention, "),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PolishConfig(**change)  # type: ignore[arg-type]


def test_a_start_for_another_base_is_refused(
    base: DiffusersBase, references: Tensor, fresh_identity: Callable[..., Identity]
) -> None:
    with pytest.raises(BaseMismatchError, match="was made for 'sd15', but the base is 'miniature'"):
        polish(base, references, fresh_identity("sd15"), CONFIG)


def test_a_start_over_noise_bands_is_refused(base: DiffusersBase, references: Tensor, polished: Identity) -> None:
    entries = {f"{name}.band{k}": c for k in (0, 1) for name, c in polished.coefficients.items()}
    banded = replace(polished, bands=((0.0, 0.5), (0.5, 1.0)), coefficients=entries)
    with pytest.raises(ConfigError, match="but polishing trains one change for all noise levels; start from nothing"):
        polish(base, references, banded, CONFIG)


def test_starts_of_different_kinds_are_refused(
    base: DiffusersBase, references: Tensor, polished: Identity, fresh_identity: Callable[..., Identity]
) -> None:
    other = fresh_identity("miniature", "attention+geglu")
    with pytest.raises(ConfigError, match="different layers or bases"):
        polish_batch(base, [references, references], [polished, other], CONFIG)
    with pytest.raises(ConfigError, match="1 subjects have pictures but 2 a start"):
        polish_batch(base, [references], [polished, polished], CONFIG)


def test_subjects_without_pictures_are_refused(base: DiffusersBase, references: Tensor) -> None:
    with pytest.raises(ReferenceImageError, match="n of 1 or more"):
        polish(base, references[:0], config=CONFIG)
    with pytest.raises(ConfigError, match="30x32 px does not fit the VAE"):
        polish(base, references[..., :30], config=CONFIG)


def test_diverged_training_is_refused(base: DiffusersBase, references: Tensor, polished: Identity) -> None:
    with pytest.raises(ConfigError, match=r"learning_rate 0.01 diverged.*Use a learning_rate of 0.003 or less"):
        polish(base, references, polished.scaled(1e30), CONFIG)


def test_captions_decide_which_prompt_each_picture_is_trained_under(base: DiffusersBase, references: Tensor) -> None:
    subjects = [(references, ["smiling", ""]), (references[:1], ())]
    material = encode_pictures(base, subjects, ["a sks face", "a lady"], crops=2, jitter=0.04, background=1.0, seed=0)
    assert material.prompts.texts == ["a sks face, smiling", "a sks face", "a lady", "a lady"]
    chosen = material.select(0, 32, 1.0)
    for row, (pool, prompts) in enumerate(zip(material.latents, chosen.prompts, strict=True)):
        for latents, prompt in zip(chosen.latents[row], prompts.tolist(), strict=True):
            (item,) = (i for i, known in enumerate(pool) if torch.equal(known, latents))
            # The pictures come first, then two copies of each.
            picture = item if item < len(subjects[row][0]) else (item - len(subjects[row][0])) // 2
            assert prompt == (picture if row == 0 else 2 + picture)


def test_the_background_counts_less_if_asked_to(base: DiffusersBase, references: Tensor) -> None:
    def holdout(background: float) -> Samples:
        subjects = [(references, ())]
        material = encode_pictures(base, subjects, ["a sks face"], 0, 0.0, background=background, seed=0)
        return material.holdout.samples(base)

    assert holdout(1.0).weights is None
    samples = holdout(0.0)
    assert samples.weights is not None and samples.weights[2, 2] == 1 and samples.weights[0, 0] == 0
    elsewhere = samples.wanted.clone()
    elsewhere[..., 0, 0] += 1
    conditioning = base.encode_prompt(["a sks face"])
    errors = [row_errors(base, conditioning, replace(samples, wanted=wanted)) for wanted in (samples.wanted, elsewhere)]
    assert torch.equal(*errors)


def test_captions_for_another_number_of_pictures_are_refused(base: DiffusersBase, references: Tensor) -> None:
    with pytest.raises(ConfigError, match="1 captions for 2 pictures; give one for each"):
        polish(base, references, None, CONFIG, captions=["smiling"])
