"""How much one invented person is one person: likeness within a corpus' subjects and between them, by the base's judge.

    hyperdream corpus invent --people 40 --no-filter --out invented
    python benchmarks/invented_people.py invented [ANOTHER ...]

Within is the cosine of a person's pictures to their reference, mutual that of the references of two people; corpora of
rendered people (`corpus collect`) are the measure of both. Intervals are of the mean over people, 95 %.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from hyperdream_core.faces.face import whole_picture
from hyperdream_core.miniature.companions import companions_of
from hyperdream_core.pipelines.corpora.corpus import Corpus


def embedded(pictures: Tensor) -> Tensor:
    recognizer = companions_of("miniature").own_recognizer()
    assert recognizer is not None
    return torch.stack([recognizer.embed(one, whole_picture(one)) for one in pictures])


def row(folder: str) -> str:
    corpus = Corpus.open(folder)
    who = torch.arange(len(corpus))
    references = embedded(corpus.take("references", who))
    within = torch.zeros(len(corpus))
    kept = torch.zeros(len(corpus))
    for person, entry in enumerate(corpus.subjects):
        # A picture of the reference's own photograph says nothing.
        rows = [k for k, photograph in enumerate(entry.pictures) if photograph != entry.references[0]]
        pictures = embedded(corpus.take("pictures", torch.full((len(rows),), person), torch.tensor(rows)))
        cosines = pictures @ references[person]
        within[person], kept[person] = cosines.mean(), (cosines >= 0.4).float().mean()
    mutual = (references @ references.T)[~torch.eye(len(corpus), dtype=torch.bool)]
    half = 1.96 * float(within.std()) / len(corpus) ** 0.5
    mean = float(within.mean())
    return (
        f"{folder}: within {mean:.3f} [{mean - half:.3f}, {mean + half:.3f}], mutual {float(mutual.mean()):.3f} (sd "
        f"{float(mutual.std()):.3f}), pictures at 0.40 or more {float(kept.mean()):.2f}, {len(corpus)} people"
    )


if __name__ == "__main__":
    for name in sys.argv[1:] or ["corpus"]:
        print(row(name))
