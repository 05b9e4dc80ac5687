from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hyperdream_core.errors import BaseMismatchError, ConfigError, ReferenceImageError
from hyperdream_core.faces.face import Face
from hyperdream_core.identity import Identity, averaged
from hyperdream_core.pipelines.corpora.collect import CollectConfig, collect
from hyperdream_core.pipelines.corpora.corpus import Corpus
from hyperdream_core.pipelines.corpora.invented import CONTEXTS, PLAIN, InventConfig, Invented, keep_identities
from hyperdream_core.pipelines.corpora.prior import GaussianPrior, LearnedPrior, somebody
from hyperdream_core.pipelines.diffusers.diffusers_base import DiffusersBase
from hyperdream_core.pipelines.drawing.draw import DrawConfig, draw
from tests.identities import make_identity
from tests.pipelines.corpora.test_resuming import killed

CONFIG = InventConfig(people=3, pictures=3, together=2, seed=5)
NORMS = {name: 1.0 + row % 3 for row, name in enumerate(make_identity("miniature").coefficients)}


def core(identity: Identity) -> Tensor:
    """All changes in LiDB's space, one after the other."""
    return torch.cat([(one.up @ one.down).flatten() for one in identity.coefficients.values()])


def scattered(count: int) -> list[Identity]:
    """Identities of random directions."""
    return [somebody(GaussianPrior(family="miniature", norms=NORMS), 3, number) for number in range(count)]


@pytest.fixture
def source(base: DiffusersBase) -> Invented:
    prior = GaussianPrior(family="miniature", norms=NORMS)
    return Invented(base=base, fingerprint="f", prior=prior, config=CONFIG, drawing=DrawConfig(steps=1))


def test_a_plain_person_changes_each_layer_by_the_share_of_its_weights() -> None:
    prior = GaussianPrior(family="miniature", norms=NORMS, spread=0.25)
    for name, one in somebody(prior, 1, 7).coefficients.items():
        assert float((one.up @ one.down).norm()) == pytest.approx(0.25 * NORMS[name], rel=1e-5)
    assert not torch.equal(core(somebody(prior, 1, 7)), core(somebody(prior, 1, 8)))
    assert torch.equal(core(somebody(prior, 1, 7)), core(somebody(prior, 1, 7)))
    assert not torch.equal(core(somebody(prior, 1, 7)), core(somebody(prior, 2, 7)))


def test_a_learned_person_lies_among_those_learned_from_as_far_from_their_mean_as_the_spread_says() -> None:
    people = scattered(5)
    mean = core(averaged(people))
    torch.testing.assert_close(core(somebody(LearnedPrior(people, 1e-9, 5), 0, 0)), mean, rtol=0, atol=1e-6)
    once, twice = (core(somebody(LearnedPrior(people, spread, 5), 0, 1)) - mean for spread in (1.0, 2.0))
    torch.testing.assert_close(twice, 2 * once, rtol=1e-3, atol=1e-5)
    # In the span of their deviations, and nowhere else.
    basis = torch.linalg.qr(torch.stack([core(one) - mean for one in people[:-1]], 1))[0]
    assert float((once - basis @ (basis.T @ once)).norm() / once.norm()) < 1e-3
    # Of the size that the covariance has, five standard deviations of the mean of 60 draws with 4 degrees of freedom.
    squares = [float((core(somebody(LearnedPrior(people, 1.0, 5), 0, n)) - mean).square().sum()) for n in range(60)]
    expected = sum(float((core(one) - mean).square().sum()) for one in people) / 4
    assert sum(squares) / 60 == pytest.approx(expected, rel=5 * (2 / 4 / 60) ** 0.5)


def test_a_lower_rank_keeps_the_largest_part_of_the_sum() -> None:
    people = scattered(4)
    whole, short = (somebody(LearnedPrior(people, 1.0, rank), 0, 0) for rank in (4, 1))
    assert short.rank == 1 and LearnedPrior(people).rank == 1
    for name, one in short.coefficients.items():
        values = torch.linalg.svdvals(whole.coefficients[name].up @ whole.coefficients[name].down)
        assert float((one.up @ one.down).norm()) == pytest.approx(float(values[0]), rel=1e-4)


def test_too_few_identities_or_some_of_another_base_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs 2 or more identities, got 1"):
        LearnedPrior(scattered(1))
    with pytest.raises(BaseMismatchError, match="cannot be added"):
        LearnedPrior([*scattered(1), make_identity("sd15")])


def test_the_identities_kept_are_those_that_drew_the_pictures(
    source: Invented, base: DiffusersBase, tmp_path: Path
) -> None:
    corpus = collect(source, tmp_path / "corpus", CollectConfig(size=64))
    keep_identities(corpus, source)
    corpus = Corpus.open(corpus.folder)
    corpus.check("identities", pictures=3, family="miniature", fingerprint="f")
    assert len(corpus) == 3 and corpus.manifest.shards == 2
    kept = corpus.identities(torch.tensor([2]))
    coefficients = {name: type(one)(one.down[0], one.up[0]) for name, one in kept.items()}
    identity = Identity(family="miniature", target_set="attention", rank=1, coefficients=coefficients)
    (caption,) = corpus.captions(torch.tensor([2]), torch.tensor([1]))
    assert caption in CONTEXTS and len(set(corpus.subjects[2].captions)) == 3
    seed = (5 * 7919 + 2) * 10_000 + 2
    drawn = draw(base, [f"a sks face, {caption}"], identity, DrawConfig(steps=1), seeds=[seed])
    found = corpus.take("pictures", torch.tensor([2]), torch.tensor([1]))
    # Rounded to 8 bits, and drawn in other company.
    torch.testing.assert_close(found, drawn, rtol=0, atol=0.6 / 255)


class Picky:
    """Takes the person of every second picture it is shown for somebody else."""

    about, same_person, needs_landmarks, side = "picky", 0.5, False, 32

    def __init__(self) -> None:
        self.shown = 0

    def embed(self, picture: Tensor, face: Face) -> Tensor:
        self.shown += 1
        return torch.tensor([1.0, 0.0]) if self.shown % 2 else torch.tensor([0.0, 1.0])


def test_pictures_of_somebody_else_are_left_out_and_counted(source: Invented, tmp_path: Path) -> None:
    from dataclasses import replace

    # A reference and three pictures of each: the second and fourth shown are left out, so one is kept of three.
    few = replace(CONFIG, least=1)
    corpus = collect(replace(source, config=few, recognizer=Picky()), tmp_path / "one", CollectConfig(size=64))
    assert corpus.picture_counts.tolist() == [1, 1, 1] and len(corpus.rejected) == 6
    assert "likeness 0.00, 0.50 is needed" in corpus.rejected[0].why
    with pytest.raises(ReferenceImageError, match="none of the 3 pictures can be used; invented-5-0000000, picture 1"):
        collect(replace(source, recognizer=Picky()), tmp_path / "none", CollectConfig(size=64))


def test_killed_around_a_shard_it_goes_on_to_the_same_bytes(
    source: Invented, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_of: Callable[[Path], dict[str, str]]
) -> None:
    def job(folder: Path) -> None:
        keep_identities(collect(source, folder, CollectConfig(size=64)), source)

    job(tmp_path / "undisturbed")
    for at in (4, 7):  # the second shard of pictures, and the first of identities
        folder = tmp_path / f"killed-{at}"
        assert killed(monkeypatch, at, True, lambda folder=folder: job(folder))
        job(folder)
        assert bytes_of(folder) == bytes_of(tmp_path / "undisturbed")


def test_the_miniature_knows_every_word_of_the_contexts() -> None:
    from hyperdream_core.miniature.world.captions import unknown_words

    assert not [word for text in (*PLAIN, *CONTEXTS) for word in unknown_words(text)]
    assert len(set(CONTEXTS)) == len(CONTEXTS) == 24


@pytest.mark.parametrize(
    ("settings", "met"),
    [({"people": 0}, "people must lie"), ({"least": 4, "pictures": 3}, "got 4 and 3"), ({"likeness": 1.5}, "likeness")],
)
def test_settings_out_of_range_are_refused(settings: dict[str, int], met: str) -> None:
    with pytest.raises(ConfigError, match=met):
        InventConfig(**settings)
