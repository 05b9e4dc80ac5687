"""Scores and intervals."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hyperdream_core.pipelines.scores import bootstrap, format_table, picture_similarity, score_method


def _score(name: str, share: float) -> object:
    """A method whose pictures lie `share` of the way to the reference, on orthogonal directions."""
    people, prompts, d = 6, 3, 8
    reference = torch.eye(people, d)
    other = torch.eye(d)[6].expand(people, d)
    pictures = F.normalize(share * reference + (1 - share) * other, dim=-1).unsqueeze(1).expand(-1, prompts, -1)
    hits = {"style": torch.ones(people, prompts, dtype=torch.bool), "pose": torch.zeros(people, prompts).bool()}
    return score_method(name, pictures, reference, hits, torch.zeros(people, prompts))


def test_gap_closed_is_zero_for_the_base_and_one_for_the_ceiling() -> None:
    base, ceiling = _score("base", 0.0), _score("ceiling", 1.0)
    assert abs(base.gap_closed(base, ceiling).mean) < 1e-6
    assert abs(ceiling.gap_closed(base, ceiling).mean - 1.0) < 1e-6


def test_attributes_are_the_mean_over_attributes_and_top1_finds_the_person() -> None:
    row = _score("ceiling", 1.0)
    assert row.attributes.mean == 0.5
    assert row.top1 == 1.0
    assert row.similarity.mean == 1.0


def test_the_interval_of_a_normal_sample_is_about_two_standard_errors_wide() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    interval = bootstrap(values)
    assert interval.low < interval.mean < interval.high
    assert abs((interval.high - interval.low) / (2 * 1.96 / 20) - 1.0) < 0.2


def test_a_copy_scores_one_and_its_negative_minus_one() -> None:
    reference = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    pictures = torch.stack([reference[0], 1.0 - reference[0]]).unsqueeze(0)
    torch.testing.assert_close(picture_similarity(pictures, reference), torch.tensor([[1.0, -1.0]]))


def test_the_table_names_every_row() -> None:
    table = format_table([_score("base", 0.0), _score("half", 0.5), _score("ceiling", 1.0)], "base", "ceiling")
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == ["base", "half", "ceiling"]
