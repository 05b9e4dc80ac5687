"""Identities as files of the host: names that never come twice, and everything beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hyperdream_webui.lora_folder import LoraFolder, digest, plain_title, stock
from PIL import Image
from safetensors.torch import load_file

from hyperdream_core.bases import get_base
from hyperdream_core.bases.keys import to_kohya
from hyperdream_core.errors import ConfigError
from hyperdream_core.formats.container import read_tensors
from hyperdream_core.formats.identity_file import read_identity
from hyperdream_core.identity import Identity

from .conftest import make_identity

PICTURE = Image.new("RGB", (40, 30), (200, 100, 50))


@pytest.fixture(scope="module")
def identity() -> Identity:
    return make_identity("sd15")


@pytest.fixture
def loras(tmp_path: Path) -> LoraFolder:
    return LoraFolder(tmp_path / "Lora" / "hyperdream", tmp_path / "models")


def names(loras: LoraFolder) -> set[str]:
    files = [path for path in loras.lora_folder.rglob("*") if path.is_file()]
    assert all(path.stem.endswith("-lora") == (path.parent.name == ".lora") for path in files)
    return {path.name for path in files}


def test_an_identity_lies_with_its_lora_words_and_picture(loras: LoraFolder, identity: Identity) -> None:
    name = loras.put(identity, "mara", PICTURE)
    stem = f"mara-{digest(identity)}"
    assert name == f"{stem}.safetensors"
    kinds = [f"{ending}.{kind}" for ending in ("", "-lora") for kind in ("json", "png", "safetensors")]
    assert names(loras) == {stem + kind for kind in kinds}
    words = json.loads((loras.lora_folder / ".lora" / f"{stem}-lora.json").read_text())
    assert words["activation text"] == "a sks face" and words["sd version"] == "SD1"
    metadata, _ = read_tensors(loras.lora_folder / ".lora" / f"{stem}-lora.safetensors")
    assert metadata["ss_output_name"] == f"{stem}-lora" and metadata["modelspec.architecture"].startswith("stable-diff")
    assert loras.prompt(name, 0.8) == f"<lora:{stem}:0.8> a sks face"


def test_the_lora_is_that_of_the_stored_identity(loras: LoraFolder, identity: Identity) -> None:
    path = loras.library.find(loras.put(identity, "mara"))
    lora = load_file(stock(path))
    family = get_base("sd15")
    for name, pair in read_identity(path).expand().items():
        assert torch.equal(lora[f"{to_kohya(name, family)}.lora_down.weight"], pair.down.half())
        assert torch.equal(lora[f"{to_kohya(name, family)}.lora_up.weight"], pair.up.half())


def test_other_numbers_never_get_an_old_name(loras: LoraFolder, identity: Identity) -> None:
    first, second = loras.put(identity, "mara"), loras.put(identity.scaled(2.0), "mara")
    assert first != second and loras.put(identity, "mara") == first
    assert loras.rename(second, "mara") == second
    loras.delete(first)
    assert loras.rename(second, "lena") != first.replace("mara", "lena")


def test_the_loras_beside_are_no_identities_of_their_own(loras: LoraFolder, identity: Identity) -> None:
    loras.put(identity, "mara")
    assert [plain_title(entry) for entry in loras.entries()] == ["mara"]


def test_renaming_takes_everything_along(loras: LoraFolder, identity: Identity) -> None:
    name = loras.put(identity, "mara")
    loras.show(name, PICTURE)
    new = loras.rename(name, "lena")
    assert {path.split("-")[0] for path in names(loras)} == {"lena"} and len(names(loras)) == 6
    metadata, _ = read_tensors(stock(loras.lora_folder / new))
    assert metadata["ss_output_name"].startswith("lena-")


def test_deleting_takes_everything_along(loras: LoraFolder, identity: Identity) -> None:
    name = loras.put(identity, "mara")
    loras.show(name, PICTURE)
    kept = loras.put(identity.scaled(3.0), "lena")
    loras.delete(name)
    assert {path.split("-")[0] for path in names(loras)} == {"lena"} and loras.read(kept)


def test_what_0_1_0_put_beside_an_identity_goes_with_it(loras: LoraFolder, identity: Identity) -> None:
    name = loras.put(identity, "mara", PICTURE)
    path = loras.library.find(name)
    for file in list(path.parent.joinpath(".lora").iterdir()):
        file.rename(path.with_name(file.name))
    assert [entry.name for entry in loras.entries()] == [name]
    loras.rename(name, "lena")
    assert {file.split("-")[0] for file in names(loras)} == {"lena"} and len(names(loras)) == 6


def test_nobody_is_between_people_of_two_families(loras: LoraFolder, identity: Identity) -> None:
    first, second = loras.put(identity, "mara"), loras.put(make_identity("miniature"), "lena")
    for one, other, share in ((first, second, 0.5), (second, first, 1.0)):
        with pytest.raises(ConfigError, match="two families; choose another of the same family"):
            loras.blend(one, other, share, "both")


def test_the_miniatures_people_lie_elsewhere_without_lora(loras: LoraFolder) -> None:
    name = loras.put(make_identity("miniature"), "mini", PICTURE)
    assert not loras.lora_folder.exists() and not loras.is_for_host(name)
    assert {path.suffix for path in loras.own_folder.iterdir()} == {".safetensors", ".png"}


def test_a_blend_is_kept_under_its_own_name(loras: LoraFolder, identity: Identity) -> None:
    first, second = loras.put(identity, "mara"), loras.put(make_identity("sd15", seed=9), "lena")
    blend = loras.read(loras.blend(first, second, 0.25, "both"))
    layer = next(iter(blend.coefficients))
    deltas = [
        pair.up @ pair.down for pair in (i.expand()[layer] for i in (blend, loras.read(first), loras.read(second)))
    ]
    torch.testing.assert_close(deltas[0], 0.75 * deltas[1] + 0.25 * deltas[2], atol=1e-4, rtol=1e-2)
    with pytest.raises(ConfigError, match="there is no identity"):
        loras.blend(first, "nobody.safetensors", 0.5, "x")


@pytest.mark.parametrize("name", ["", "../up", "a/b", "con"])
def test_a_name_that_cannot_be_a_files_is_refused(loras: LoraFolder, identity: Identity, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a name"):
        loras.put(identity, name)
