"""What a predictor's training draws: the same rows whatever is read at once, and no reference as its own target."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hyperdream_core.errors import ConfigError
from hyperdream_core.ops.lidb import LidbCoefficients
from hyperdream_core.pipelines.training.subject_rows import SubjectBatches, check_identities
from tests.pipelines.training.people import InMemory

CORPUS = InMemory((4, 3, 3))
BATCHES = SubjectBatches(
    corpus=CORPUS, rows=5, pictures=3, names="a sks face", picture_size=32, latent_shape=(4, 3, 3), passes=4,
    has_features=True, has_identities=True,
)  # fmt: skip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_rows_read_apart_are_the_rows_of_the_whole() -> None:
    step = BATCHES(generator())
    whole, parts = step.rows(range(5)), [step.rows(range(2)), step.rows(range(2, 5))]
    for name in ("latents", "noise", "level"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts])), name
    assert torch.equal(whole.features.tokens, torch.cat([part.features.tokens for part in parts]))
    assert list(whole.text) == [text for part in parts for text in part.text]
    assert torch.equal(whole.targets["layer"].down, torch.cat([part.targets["layer"].down for part in parts]))
    assert {whole.passes} == {part.passes for part in parts} and 1 <= whole.passes <= 4
    assert len({float(one.sum()) for one in whole.noise}) == 15
    assert not torch.equal(whole.noise, BATCHES(generator(1)).rows(range(5)).noise)


def test_nobody_who_is_held_out_is_ever_seen() -> None:
    seen = torch.cat(
        [torch.cat([step.subjects, step.shown.flatten()]) for step in map(BATCHES, map(generator, range(40)))]
    )
    assert set(seen.tolist()) == {0, 1, 2, 3}


def test_a_reference_is_never_its_own_target_where_there_is_another_picture() -> None:
    batches = replace(BATCHES, unconditional=0.0)
    pairs = {
        (int(subject), int(reference), int(picture))
        for step in map(batches, map(generator, range(60)))
        for subject, reference, pictures in zip(step.subjects, step.references, step.pictures, strict=True)
        for picture in pictures
    }
    assert all(reference != picture for subject, reference, picture in pairs if CORPUS.picture_counts[subject] > 1)
    assert (0, 0, 0) in pairs, "who has but one picture is learnt from that"
    # Subject 2 has three of each: all six pairs of different ones come.
    assert len({pair for pair in pairs if pair[0] == 2}) == 6


def test_anybody_is_shown_under_an_empty_prompt_and_the_subject_under_its_own() -> None:
    steps = [replace(BATCHES, unconditional=0.3, caption_dropout=0.2)(generator(seed)) for seed in range(80)]
    flags = torch.cat([step.anybody.flatten() for step in steps]).float()
    plain = torch.cat([step.plain.flatten() for step in steps]).float()
    # Four standard deviations of 1,200 draws.
    assert abs(float(flags.mean()) - 0.3) < 4 * (0.3 * 0.7 / 1200) ** 0.5
    assert abs(float(plain.mean()) - 0.2) < 4 * (0.2 * 0.8 / 1200) ** 0.5
    step = steps[0]
    shown, pictures = step.shown.flatten().tolist(), step.pictures.flatten().tolist()
    subjects = step.subjects.repeat_interleave(3).tolist()
    for row, text in enumerate(step.rows(range(5)).text):
        if step.anybody.flatten()[row]:
            assert text == ""
        else:
            assert shown[row] == subjects[row]
            caption = "" if step.plain.flatten()[row] else f", picture {pictures[row]} of {shown[row]}"
            assert text == f"a sks face{caption}"


def test_without_features_the_references_come_at_the_bases_size() -> None:
    pictures = replace(BATCHES, has_features=False, picture_size=24)(generator()).rows(range(2)).features
    assert isinstance(pictures, torch.Tensor) and pictures.shape == (2, 3, 24, 24)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ({"other": (5, 7)}, "differ in 2 layers, the first 'layer'"),
        ({"layer": (6, 7)}, r"layer 'layer' has down_dim and up_dim \(5, 7\) .* but \(6, 7\)"),
    ],
)
def test_identities_for_another_network_are_refused(start: dict[str, tuple[int, int]], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_identities(CORPUS, {
            name: LidbCoefficients(torch.zeros(1, 1, down), torch.zeros(1, up, 1)) for name, (down, up) in start.items()
        })  # fmt: skip
