"""The judges' objectives and scores."""

from __future__ import annotations

import torch

from hyperdream_core.miniature.trial.judges import (
    AttributeJudge,
    AttributeObjective,
    IdentityJudge,
    IdentityObjective,
    attribute_accuracy,
)
from hyperdream_core.miniature.world.captions import ATTRIBUTES, random_context


def test_embeddings_have_unit_length() -> None:
    embeddings = IdentityJudge()(torch.rand(2, 3, 128, 128))
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(2))


def test_training_on_a_batch_lowers_both_losses() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(6, 3, 64, 64, generator=generator)
    context = random_context(6, generator)
    for objective, batch in (
        (IdentityObjective(IdentityJudge()), torch.stack([pictures, pictures.flip(-1)], 1)),
        (AttributeObjective(AttributeJudge()), (pictures, context)),
    ):
        optimizer = torch.optim.Adam(objective.parameters(), lr=1e-3)
        losses = []
        for _ in range(4):
            loss = objective(batch, generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0]


def test_a_judge_that_reads_right_scores_all_and_wrong_scores_none() -> None:
    class Reads(AttributeJudge):
        def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
            wanted = {name: getattr(context, name) for name in ATTRIBUTES}
            wanted["style"] = (wanted["style"] + 1) % 4
            return {name: torch.nn.functional.one_hot(index, 9).float() for name, index in wanted.items()}

    context = random_context(3, torch.Generator().manual_seed(0))
    hits = attribute_accuracy(Reads(), torch.rand(3, 3, 8, 8), context)
    assert bool(hits["expression"].all()) and not bool(hits["style"].any())
