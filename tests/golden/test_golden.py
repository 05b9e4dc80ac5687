"""Files as 0.1.0 wrote them: every later release reads them, finds the same in them and writes the same again.

`make_golden.py` says how they were made. None is ever made anew: if a test fails here, the reader is at fault. What is
expected of them lies in `files/expected.safetensors`, which is read without this project's code. Nothing here depends
on the shipped weights; random ones of the miniature's shape stand in for a base.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from hyperdream_core.errors import Cancelled, ConfigError
from hyperdream_core.formats.identity_file import read_identity, write_identity
from hyperdream_core.formats.lora_file import read_lora
from hyperdream_core.identity import Identity
from hyperdream_core.miniature.trial.kept_rows import keep_row, kept_row
from hyperdream_core.pipelines.export import ExportConfig, export_lora
from hyperdream_core.pipelines.library import Library
from hyperdream_core.pipelines.polishing.polish import polish
from hyperdream_core.pipelines.polishing.polish_config import PolishConfig
from hyperdream_core.pipelines.predictors.hypernetwork_predictor import (
    read_hypernetwork_predictor,
    save_hypernetwork,
)
from hyperdream_core.pipelines.predictors.predict import predict_identity
from hyperdream_core.pipelines.training.loop import TrainingConfig, train
from tests.pipelines.conftest import random_base

FILES = Path(__file__).parent / "files"
LIBRARY = FILES / "library"
POLISH = PolishConfig(
    steps=5, rank=2, file_rank=3, batch=1, learning_rate=0.01, holdout_every=2, save_every=3, preserve_batch=2,
    rate_unit="coefficient",
)  # fmt: skip
TRAINING = TrainingConfig(steps=6, warmup=2, learning_rate=0.1, save_every=4)
IDENTITIES = {
    "identity-sd15-fp16": ("identity-sd15", torch.float16),
    "identity-text-fp32": ("identity-text", torch.float32),
    "identity-predicted-fp32": ("predicted", torch.float32),
    "identity-polished-fp16": ("polished", torch.float16),
    "identity-polished-fp32": ("polished", torch.float32),
}
"""File -> its values in expected.safetensors, and the numbers they were rounded to"""
LORAS = {"lora-kohya": ("identity-polished-fp32", "kohya", 1.0),
         "lora-diffusers": ("identity-predicted-fp32", "diffusers", 0.5)}  # fmt: skip
"""File -> the identity it was made of, its dialect and the strength put into it"""
FROM_SCRATCH = "cc7d482a2d1ba88b3b3c4a8ad4d892bbab876a20915f362c57dd3f2b029252c6"
"""What 0.1.0 calls the job of polishing `expected["picture"]` from scratch, steps left out"""


class Line(nn.Module):
    """Square error of a line through the batch's points."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(2))

    def forward(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        return (self.slope * batch - torch.tensor([2.0, -1.0]) * batch).square().mean()


def points(generator: torch.Generator) -> Tensor:
    return torch.rand(8, 2, generator=generator)


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return load_file(FILES / "expected.safetensors")


def golden(name: str) -> Path:
    return FILES / f"{name}.safetensors"


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def values_of(identity: Identity) -> dict[str, Tensor]:
    """`down` (layers, r, 5) and `up` (layers, 7, r), layers by their names' alphabet."""
    layers = [one for _, one in sorted(identity.coefficients.items())]
    return {side: torch.stack([getattr(one, side) for one in layers]) for side in ("down", "up")}


def under(expected: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key[len(name) + 1 :]: value for key, value in expected.items() if key.startswith(f"{name}/")}


def assert_equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert not [name for name, value in found.items() if not torch.equal(value, wanted[name])]


def assert_same_change(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], share: float) -> None:
    """The weight changes in the bases' coordinates differ by less than a share of their size, all layers together."""
    ours, theirs = (values["up"] @ values["down"] for values in (found, wanted))
    assert float((ours - theirs).norm()) < share * float(theirs.norm())


@pytest.mark.parametrize("name", IDENTITIES)
def test_an_identity_is_read_as_it_was_and_written_byte_for_byte(
    name: str, expected: dict[str, Tensor], tmp_path: Path
) -> None:
    values, dtype = IDENTITIES[name]
    identity = read_identity(golden(name))
    wanted = {key: value.to(dtype).float() for key, value in under(expected, values).items() if key != "losses"}
    assert_equal(values_of(identity), wanted)
    write_identity(tmp_path / "again.safetensors", identity, dtype)
    assert (tmp_path / "again.safetensors").read_bytes() == golden(name).read_bytes()


def test_an_identity_says_what_it_is() -> None:
    drawn, polished = read_identity(golden("identity-sd15-fp16")), read_identity(golden("identity-polished-fp16"))
    assert (drawn.family, drawn.target_set, drawn.rank, drawn.down_dim, drawn.up_dim) == ("sd15", "attention", 1, 5, 7)
    assert (drawn.identifier, drawn.class_noun) == ("ohwx", "person")
    assert dict(drawn.made_by) == {"method": "drawn at random", "word": "größer"}
    assert (polished.family, polished.rank, polished.identifier, polished.class_noun) == ("miniature", 3, "sks", "face")
    facts = {"method": "hypernetwork", "finetune_steps": "5", "finetune_rank": "2", "seed": "0", "notes": "polished"}
    assert facts.items() <= polished.made_by.items()
    text = read_identity(golden("identity-text-fp32"))
    assert (text.target_set, text.rank) == ("attention+geglu+text", 2)


def test_the_bases_that_a_file_leaves_out_are_drawn_as_they_were(expected: dict[str, Tensor]) -> None:
    wanted = under(expected, "expanded")
    (layer,) = {key.rpartition("/")[0] for key in wanted}
    pair = read_identity(golden("identity-sd15-fp16")).expand()[layer]
    # The file holds half precision; the values were kept before rounding.
    torch.testing.assert_close(pair.down, wanted[f"{layer}/down"], atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(pair.up, wanted[f"{layer}/up"], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("name", LORAS)
def test_a_lora_is_the_identity_it_was_made_of(name: str) -> None:
    origin, _, strength = LORAS[name]
    family, pairs = read_lora(golden(name))
    wanted = read_identity(golden(origin)).expand()
    assert family == "miniature" and pairs.keys() == wanted.keys()
    for layer, pair in pairs.items():
        change = strength * (wanted[layer].up @ wanted[layer].down)
        # Each factor was rounded to eleven bits; a change's numbers are sums of a few products of them.
        torch.testing.assert_close(pair.up @ pair.down, change, atol=2e-3 * float(change.abs().max()), rtol=2e-3)


@pytest.mark.parametrize("name", LORAS)
def test_an_identity_is_exported_as_it_was(name: str, tmp_path: Path) -> None:
    origin, dialect, strength = LORAS[name]
    settings: dict[str, Any] = {"dialect": dialect, "strength": strength, "title": "Sofia", "license": "CC0-1.0"}
    again = tmp_path / f"{name}.safetensors"
    export_lora(read_identity(golden(origin)), again, ExportConfig(**settings))
    # What is said of the numbers' bits depends on the processor's sums.
    bits = {"sshs_model_hash", "modelspec.hash_sha256"}
    said, wanted = ({k: v for k, v in metadata_of(p).items() if k not in bits} for p in (again, golden(name)))
    # Later releases may say more.
    assert said.items() >= wanted.items()
    ours, theirs = load_file(again), load_file(golden(name))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, atol=1e-4, rtol=2e-3)


def test_a_predictor_sees_in_a_picture_what_it_saw(expected: dict[str, Tensor]) -> None:
    stored = read_hypernetwork_predictor(golden("predictor"))
    assert (stored.fingerprint, dict(stored.training)) == ("f00d", {"steps": 12, "data": "nothing"})
    identity = predict_identity(stored.network, expected["picture"])
    assert (identity.family, identity.target_set, identity.rank) == ("miniature", "attention", 1)
    wanted = under(expected, "predicted")
    assert wanted["up"].abs().max() > 0.01
    # A convolution's sums are in another order on another processor.
    assert_same_change(values_of(identity), wanted, share=1e-4)


def test_a_predictor_is_written_as_it_was(tmp_path: Path) -> None:
    stored, again = read_hypernetwork_predictor(golden("predictor")), tmp_path / "again.safetensors"
    save_hypernetwork(again, stored.network, base_fingerprint=stored.fingerprint, training=stored.training)
    assert_equal(load_file(again), load_file(golden("predictor")))
    now, then = metadata_of(again), metadata_of(golden("predictor"))
    # Settings may be added, which leaves those that there are.
    assert json.loads(then["config"]).items() <= json.loads(now["config"]).items()
    same = ("layers_digest", "basis_recipe", "base_fingerprint", "training")
    assert all(now[key] == then[key] for key in same)


def test_polishing_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(
    expected: dict[str, Tensor], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    shutil.copyfile(golden("finetune-checkpoint"), checkpoint)
    steps: list[int] = []
    start = read_identity(golden("identity-predicted-fp32"))
    base = random_base()
    with pytest.raises(ConfigError, match="checkpoint of another job"):
        polish(base, expected["picture"], start.scaled(0.5), POLISH, checkpoint=checkpoint)
    result = polish(
        base, expected["picture"], start, POLISH, lambda step, total: steps.append(step), checkpoint
    )  # fmt: skip
    assert max(b - a for a, b in pairwise(steps)) == 3, "it did not begin at the fourth step"
    assert not checkpoint.exists()
    # Adam's first steps divide by gradients near zero, which enlarges the difference between two processors' sums.
    torch.testing.assert_close(torch.tensor(result.losses), expected["polished/losses"], atol=1e-4, rtol=1e-3)
    wanted = {key: value for key, value in under(expected, "polished").items() if key != "losses"}
    assert_same_change(values_of(result.identity), wanted, share=0.01)


def test_a_job_from_scratch_that_was_stopped_goes_on_for_the_steps_it_began_with(
    expected: dict[str, Tensor], tmp_path: Path
) -> None:
    """Steps that nobody named were 40 from scratch too; the digest is what 0.1.0 wrote into such a job's checkpoint."""
    picture, checkpoint, steps = expected["picture"], tmp_path / "checkpoint.safetensors", list[tuple[int, int]]()
    config = replace(POLISH, steps=None, holdout_every=0)

    def stop_at_four(step: int, total: int) -> None:
        steps.append((step, total))
        if step == 4:
            raise Cancelled("stopped")

    named = polish(random_base(), picture, None, replace(config, steps=40), stop_at_four, checkpoint)
    assert named.cancelled and metadata_of(checkpoint)["job"] == FROM_SCRATCH
    # Stopped again, it says how many those are.
    shutil.copyfile(checkpoint, tmp_path / "again")
    again = polish(random_base(), picture, None, config, stop_at_four, tmp_path / "again")
    assert again.cancelled and (len(again.losses), again.steps) == (4, 40)
    steps.clear()
    polish(random_base(), picture, None, config, lambda *at: steps.append(at), checkpoint)
    assert steps[0] == (4, 40) and steps[-1] == (40, 40)
    # A job that nobody has begun takes today's steps.
    assert polish(random_base(), picture, None, config, stop_at_four, checkpoint).cancelled
    assert steps[-1] == (4, 200)


def test_training_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(
    expected: dict[str, Tensor], tmp_path: Path
) -> None:
    checkpoint, line = tmp_path / "checkpoint.safetensors", Line()
    shutil.copyfile(golden("training-checkpoint"), checkpoint)
    losses = train(line, points, TRAINING, checkpoint, cycles=2)
    torch.testing.assert_close(torch.tensor(losses), expected["trained/losses"][-4:], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(line.slope.detach(), expected["trained/slope"], atol=1e-6, rtol=1e-5)


@pytest.fixture
def library(tmp_path: Path) -> Library:
    shutil.copytree(LIBRARY, tmp_path / "library")
    return Library(lambda: [tmp_path / "library"])


def test_a_library_lists_what_it_listed(library: Library) -> None:
    wanted = json.loads((FILES / "library.json").read_text(encoding="utf-8"))
    found = {entry.name: asdict(entry) for entry in library.entries()}
    assert sorted(found) == [entry["name"] for entry in wanted]
    for entry in wanted:
        # More may be said of an identity, and the sentence about a strange file may be another one.
        problem = entry.pop("problem")
        assert entry.items() <= found[entry["name"]].items()
        assert bool(problem) == bool(found[entry["name"]]["problem"])
    assert [name for name, entry in found.items() if entry["preview"] is not None] == ["mara.safetensors"]


def test_notes_strength_and_preview_of_a_library_are_kept(library: Library) -> None:
    path, before = library.find("mara.safetensors"), (LIBRARY / "mara.safetensors").read_bytes()
    library.annotate("mara.safetensors", notes="from the beach,\nin größter Eile", strength=0.8)
    assert path.read_bytes() == before
    name = library.rename("mara.safetensors", "sofia")
    preview = library.preview(name)
    assert preview is not None and preview.read_bytes() == (LIBRARY / "mara.png").read_bytes()
    assert library.find(name).read_bytes() == before


def test_a_finished_row_of_a_trial_is_kept(tmp_path: Path) -> None:
    row = kept_row(FILES, "trial", "prediction k=1")
    assert row is not None and row.similarity_by_person.shape == (3,)
    stored = json.loads((FILES / "rows" / "prediction-k=1.json").read_text(encoding="utf-8"))
    assert row.similarity.mean == stored["similarity"]["mean"]
    assert row.attributes_by_person.tolist() == stored["attributes_by_person"]
    keep_row(tmp_path, "trial", row)
    again = json.loads((tmp_path / "rows" / "prediction-k=1.json").read_text(encoding="utf-8"))
    assert stored.items() <= again.items()
