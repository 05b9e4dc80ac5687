from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hyperdream_core.bases import get_base
from hyperdream_core.bases.keys import to_kohya
from hyperdream_core.errors import BaseMismatchError, ConfigError, FileFormatError
from hyperdream_core.formats.identity_file import inspect_identity, read_identity, write_identity
from hyperdream_core.identity import Identity
from hyperdream_core.ops import lidb
from hyperdream_core.ops.lidb import LidbCoefficients
from hyperdream_core.ops.lowrank import delta


def draw_identity(family: str = "miniature", target_set: str = "attention", rank: int = 1, seed: int = 0) -> Identity:
    generator = torch.Generator().manual_seed(seed)
    coefficients = {}
    for layer in get_base(family).layers(target_set):
        p, a = lidb.basis_sizes(layer.in_features, layer.out_features)
        coefficients[layer.name] = LidbCoefficients(
            down=torch.randn(rank, p, generator=generator), up=torch.randn(a, rank, generator=generator)
        )
    return Identity(
        family=family,
        target_set=target_set,
        rank=rank,
        coefficients=coefficients,
        identifier="sks",
        class_noun="face",
        made_by={"how": "drawn für a test"},
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sofia.safetensors"


def contents(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("layout", ["layers", "stacked"])
@pytest.mark.parametrize("target_set", ["attention", "attention+geglu+text"])
def test_an_identity_survives_its_file_bit_for_bit(path: Path, layout: str, target_set: str) -> None:
    identity = draw_identity(target_set=target_set, rank=3)
    write_identity(path, identity, torch.float32, layout)
    found = read_identity(path)
    facts = ("family", "target_set", "rank", "down_dim", "up_dim", "identifier", "class_noun", "made_by")
    assert [getattr(found, fact) for fact in facts] == [getattr(identity, fact) for fact in facts]
    for name, coefficients in identity.coefficients.items():
        assert torch.equal(found.coefficients[name].down, coefficients.down)
        assert torch.equal(found.coefficients[name].up, coefficients.up)


def test_the_two_layouts_hold_the_same_identity(path: Path) -> None:
    identity = draw_identity()
    read = []
    for layout in ("layers", "stacked"):
        write_identity(path, identity, torch.float16, layout)
        read.append(read_identity(path))
    for name in identity.coefficients:
        assert torch.equal(read[0].coefficients[name].up, read[1].coefficients[name].up)
        assert torch.equal(read[0].coefficients[name].up, identity.coefficients[name].up.half().float())


def test_a_shared_file_names_each_layer_as_hosts_split_keys(path: Path) -> None:
    write_identity(path, draw_identity())
    _, tensors = contents(path)
    base = get_base("miniature")
    names = {to_kohya(layer.name, base) for layer in base.layers("attention")}
    assert {key.split(".", 1)[0] for key in tensors} == names
    assert {key.split(".", 1)[1] for key in tensors} == {"lidb_down", "lidb_up"}


@pytest.mark.parametrize(
    ("target_set", "dtype", "most"),
    [("attention", torch.float16, 80_000), ("attention+geglu+text", torch.float32, 130_000)],
)
def test_a_stable_diffusion_identity_is_small(path: Path, target_set: str, dtype: torch.dtype, most: int) -> None:
    write_identity(path, draw_identity("sd15", target_set), dtype)
    assert path.stat().st_size <= most
    assert read_identity(path).family == "sd15"


def test_an_identity_expands_to_the_layers_it_is_for() -> None:
    identity = draw_identity(rank=2)
    pairs = identity.expand(torch.float64)
    assert list(pairs) == [layer.name for layer in get_base("miniature").layers("attention")]
    for layer in identity.layers[::17]:
        basis = lidb.auxiliary_basis(
            "miniature", layer.name, layer.in_features, layer.out_features, dtype=torch.float64
        )
        part = identity.coefficients[layer.name]
        expected = basis.up @ part.up.double() @ part.down.double() @ basis.down
        torch.testing.assert_close(delta(pairs[layer.name]), expected)


def test_scaling_adding_and_the_canonical_form_act_on_the_weight_change() -> None:
    one, two = draw_identity(rank=1), draw_identity(rank=3, seed=1)
    total, layer = one.scaled(0.5).concatenated(two), one.layers[5].name

    def change(identity: Identity) -> Tensor:
        return delta(identity.expand(torch.float64)[layer])

    assert total.rank == 4
    torch.testing.assert_close(change(total), 0.5 * change(one) + change(two))
    # Coefficients are float32.
    torch.testing.assert_close(change(total.canonicalized()), change(total), rtol=1e-4, atol=1e-5)


def test_identities_of_different_spaces_do_not_add_up() -> None:
    with pytest.raises(BaseMismatchError, match="cannot be added: base family, target set"):
        draw_identity().concatenated(draw_identity(target_set="attention+geglu"))


def test_an_identity_has_exactly_the_layers_of_its_target_set() -> None:
    identity = draw_identity()
    some = dict(list(identity.coefficients.items())[:-1])
    with pytest.raises(BaseMismatchError, match=r"each of its 80 layers, but layer 'up_blocks.*missing"):
        replace(identity, coefficients=some)
    with pytest.raises(BaseMismatchError, match="layer 'x' is none of them"):
        replace(identity, coefficients={**identity.coefficients, "x": some[identity.layers[0].name]})
    with pytest.raises(BaseMismatchError, match=r"has down \(1, 50\) and up \(96, 1\), but 'miniature' at rank 2"):
        replace(identity, rank=2)
    with pytest.raises(ConfigError, match="unknown layout 'flat'; known: layers, stacked"):
        write_identity("x.safetensors", identity, layout="flat")


def test_an_identity_for_another_base_is_refused_by_name(path: Path) -> None:
    write_identity(path, draw_identity())
    assert read_identity(path, "miniature").family == "miniature"
    words = r"sofia.safetensors: was made for 'miniature', but the base is 'sdxl'. Load a checkpoint of the miniature"
    with pytest.raises(BaseMismatchError, match=words):
        read_identity(path, "sdxl")


Change = Callable[[dict[str, str], dict[str, Tensor]], object]
FIRST = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lidb_up"


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda m, t: m.update(kind="hyperdream-hypernetwork"), FileFormatError, "but 'hyperdream-identity' is exp"),
        (lambda m, t: m.update(version="3"), FileFormatError, "this release reads up to 2. Update HyperDream"),
        (lambda m, t: m.update(version="2"), FileFormatError, "lacks 'bands' in its metadata"),
        (lambda m, t: m.update(bands="[[0, 1]]"), FileFormatError, "has noise bands, which format version 1 knows not"),
        (lambda m, t: m.update(family="flux"), FileFormatError, "has family 'flux', but sd15, sd2, sdxl, miniature"),
        (lambda m, t: m.update(family="sd15"), BaseMismatchError, "another list of layers"),
        (lambda m, t: m.update(target_set="all"), FileFormatError, "has target_set 'all', but attention, "),
        (lambda m, t: m.update(layout="flat"), FileFormatError, "has layout 'flat'"),
        (lambda m, t: m.update(rank="0"), FileFormatError, "has rank '0', but a whole number of 1 or more"),
        (lambda m, t: m.update(rank="9" * 5000), FileFormatError, "but a whole number of 1 or more"),
        (lambda m, t: m.update(rank="2"), FileFormatError, r"has shape \(.*\), but its metadata needs"),
        (lambda m, t: m.update(basis_digest="0" * 64), BaseMismatchError, "another auxiliary basis .digest 0000"),
        (lambda m, t: m.update(down_dim="49"), FileFormatError, "but its metadata needs"),
        (lambda m, t: m.update(down_dim="99999"), FileFormatError, "but at most 2048 are drawn"),
        (lambda m, t: t.update({FIRST: torch.full((96, 1), 65504.0)}), FileFormatError, "as large as 65504"),
        (
            lambda m, t: t.update({FIRST: torch.full((96, 1), 1e300, dtype=torch.float64)}),
            FileFormatError,
            "holds NaN or inf",
        ),
        (lambda m, t: m.update(identifier="a" * 301), FileFormatError, "but at most 300 printable characters"),
        (lambda m, t: m.update(class_noun="face\n\x1b[2J"), FileFormatError, r"has class_noun 'face.n.x1b"),
        (lambda m, t: m.pop("rank"), FileFormatError, "lacks 'rank' in its metadata"),
        (lambda m, t: m.update(made_by="{"), FileFormatError, "made_by in its metadata that is not valid JSON"),
        (lambda m, t: m.update(made_by="[" * 100_000), FileFormatError, "nested deeper than 32"),
        (
            lambda m, t: m.update(made_by="3"),
            FileFormatError,
            "made_by in its metadata that is not an object but a number",
        ),
        (lambda m, t: t.update(extra=torch.zeros(1)), FileFormatError, "holds 'extra', which no identity"),
        (lambda m, t: t.pop(FIRST), FileFormatError, "lacks 'lora_unet_down.*lidb_up', one of 160"),
        (lambda m, t: t.update({FIRST: torch.zeros(31, 1)}), FileFormatError, r"has shape \(31, 1\), but .*\(96, 1\)"),
        (lambda m, t: t.update({FIRST: torch.full((96, 1), float("nan"))}), FileFormatError, "holds NaN"),
        (lambda m, t: t.update({FIRST: torch.zeros(96, 1, dtype=torch.int8)}), FileFormatError, "holds I8 numbers"),
    ],
)
def test_an_altered_file_is_refused_by_name_here_and_by_inspection(
    path: Path, change: Change, error: type[Exception], words: str
) -> None:
    write_identity(path, draw_identity())
    metadata, tensors = contents(path)
    change(metadata, tensors)
    save_file(tensors, path, metadata)
    with pytest.raises(error, match=words) as caught:
        read_identity(path)
    assert str(caught.value).startswith("sofia.safetensors: ")
    report = inspect_identity(path)
    assert (report["readable"], report["problem"]) == (False, str(caught.value))


def test_inspection_says_what_a_good_file_holds(path: Path) -> None:
    identity = draw_identity(rank=2)
    write_identity(path, identity, torch.float32)
    report = inspect_identity(path)
    assert json.loads(json.dumps(report)) == report
    assert (report["readable"], report["problem"]) == (True, None)
    assert (report["family"], report["layers"], report["rank"]) == ("miniature", 80, 2)
    assert report["bytes"] == os.path.getsize(path)
    whole = sum(delta(pair).square().sum().item() for pair in identity.expand(torch.float64).values())
    assert report["delta_norm"] == pytest.approx(whole**0.5, rel=1e-4)


def test_inspection_of_nothing_says_so(path: Path) -> None:
    report = inspect_identity(path)
    assert report["readable"] is False
    assert "cannot be opened" in report["problem"]
    path.write_bytes(b"")
    assert inspect_identity(path)["problem"] == "sofia.safetensors: is empty (0 bytes), but a safetensors file is " + (
        "expected. Get it again."
    )


BANDS = ((0.0, 0.25), (0.5, 1.0))


def draw_banded(rank: int = 2) -> Identity:
    low, high = draw_identity(rank=rank), draw_identity(rank=rank, seed=1)
    entries = {f"{name}.band{k}": c for k, one in enumerate((low, high)) for name, c in one.coefficients.items()}
    return replace(low, bands=BANDS, coefficients=entries)


@pytest.mark.parametrize("layout", ["layers", "stacked"])
def test_bands_survive_the_file_bit_for_bit(path: Path, layout: str) -> None:
    identity = replace(draw_banded(), bands=((1 / 3, 0.7), (0.7, 1.0)))
    write_identity(path, identity, torch.float32, layout)
    found = read_identity(path)
    assert found.bands == identity.bands and found.coefficients.keys() == identity.coefficients.keys()
    for name, coefficients in identity.coefficients.items():
        assert torch.equal(found.coefficients[name].down, coefficients.down)
        assert torch.equal(found.coefficients[name].up, coefficients.up)


def test_a_band_is_named_in_the_keys_of_either_layout(path: Path) -> None:
    write_identity(path, draw_banded())
    metadata, tensors = contents(path)
    assert (metadata["version"], metadata["bands"]) == ("2", "[[0.0, 0.25], [0.5, 1.0]]")
    ends = {key.split(".", 1)[1] for key in tensors}
    assert ends == {"band0.lidb_down", "band0.lidb_up", "band1.lidb_down", "band1.lidb_up"}
    write_identity(path, draw_banded(), layout="stacked")
    assert {"band0.lidb_down_50", "band1.lidb_down_50"} <= contents(path)[1].keys()


def test_a_constant_identity_is_written_as_ever(path: Path) -> None:
    write_identity(path, draw_identity())
    metadata, tensors = contents(path)
    assert metadata["version"] == "1" and "bands" not in metadata
    assert not [key for key in tensors if "band" in key]


@pytest.mark.parametrize(
    ("bands", "words"),
    [
        ("[[0, 0.6], [0.5, 1]]", r"the band \[0.5, 1\) starts below 0.6"),
        ("[[0.5, 1], [0, 0.25]]", r"the band \[0, 0.25\) starts below 1"),
        ("[[0, 0.25], [0.5, 1.5]]", "is empty or leaves 0 to 1"),
        ("[[0.5, 0.5], [0.5, 1]]", "is empty or leaves 0 to 1"),
        ("[[NaN, 0.5], [0.5, 1]]", "is empty or leaves 0 to 1"),
        ("[[0, 0.25], [0.5, Infinity]]", "is empty or leaves 0 to 1"),
        ("[]", "there is no noise band"),
        ("3", "a list of 1 to 64 pairs"),
        ("[[0, 0.5, 1]]", "a list of 1 to 64 pairs"),
        ("{", "a list of 1 to 64 pairs"),
        ("[" * 100_000, "a list of 1 to 64 pairs"),
        (json.dumps([[k / 100, (k + 1) / 100] for k in range(100)]), "a list of 1 to 64 pairs"),
        ("[[0, 0.5]]", "has 'lora_unet_.*band1|holds 'lora_unet_.*band1"),
    ],
)
def test_bands_that_are_none_are_refused_by_name(path: Path, bands: str, words: str) -> None:
    write_identity(path, draw_banded())
    metadata, tensors = contents(path)
    save_file(tensors, path, metadata | {"bands": bands})
    with pytest.raises(FileFormatError, match=words) as caught:
        read_identity(path)
    assert str(caught.value).startswith("sofia.safetensors: ")


def test_inspection_tells_the_bands_and_the_change_in_each(path: Path) -> None:
    identity = draw_banded()
    write_identity(path, identity, torch.float32)
    report = inspect_identity(path)
    assert json.loads(json.dumps(report)) == report
    assert (report["bands"], report["layers"]) == ([[0.0, 0.25], [0.5, 1.0]], 80)
    for band, norm in zip(BANDS, report["delta_norm_of_bands"], strict=True):
        whole = sum(delta(pair).square().sum().item() for pair in identity.changes(band).values())
        assert norm == pytest.approx(whole**0.5, rel=1e-4)
