"""Folding, by the numbers of the module's opening and against the identities that come out."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hyperdream_core.bases import get_base
from hyperdream_core.identity import Identity
from hyperdream_core.ops.lowrank import delta
from hyperdream_core.pipelines.polishing.trainable_adapters import TrainableAdapters, _Group, without_effect


def test_the_worked_example_of_the_opening() -> None:
    group = _Group(
        names=["layer"],
        trained=torch.tensor([[[[2.0, 1.0]]]]),
        fixed=torch.tensor([[[[5.0, 5.0, 5.0]]]]),
        shared=torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
        signs=torch.tensor([1.0, -1.0, 1.0]).reshape(1, 1, 1, 3),
    )
    assert group.fold()[0, 0].tolist() == [[5.0, 5.0, 5.0], [2.0, -1.0, 0.0]]


def test_what_layers_run_on_is_the_start_and_what_comes_out(fresh_identity: Callable[..., Identity]) -> None:
    family, starts = get_base("miniature"), [fresh_identity("miniature", rank=2, scale=0.5), None]
    like = without_effect(family, starts, ("attention", 50, 100))
    generator = torch.Generator().manual_seed(0)
    adapters = TrainableAdapters(family, like, 3, starts, generator, torch.device("cpu"))
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    folded = adapters.fold()
    for row, start in enumerate(starts):
        fresh = Identity(family="miniature", target_set="attention", rank=3, coefficients=adapters.coefficients(row))
        whole = (fresh if start is None else start.concatenated(fresh)).expand()
        for name in list(whole)[::20]:
            torch.testing.assert_close(delta(folded[name])[row], delta(whole[name]), rtol=1e-4, atol=1e-5)
