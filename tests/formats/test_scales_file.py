from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hyperdream_core.bases import get_base
from hyperdream_core.errors import BaseMismatchError, FileFormatError, OutputError
from hyperdream_core.formats.scales_file import read_scales, write_scales
from hyperdream_core.ops.bands import Band
from hyperdream_core.ops.scales import ScaleChange
from tests.identities import make_scales

BANDS = ((0.0, 1 / 3), (0.5, 1.0))
Change = Callable[[dict[str, str], dict[str, Tensor]], object]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sofia.safetensors"


@pytest.mark.parametrize("is_two_sided", [True, False])
@pytest.mark.parametrize("bands", [((0.0, 1.0),), BANDS])
def test_scales_survive_their_file_bit_for_bit(path: Path, bands: tuple[Band, ...], is_two_sided: bool) -> None:
    scales = make_scales("miniature", "attention+geglu+text", bands, is_two_sided)
    write_scales(path, scales, torch.float32)
    found = read_scales(path, "miniature", scales.integers)
    for fact in ("family", "target_set", "quantization", "integers", "bands", "sides", "identifier", "class_noun",
                 "made_by"):  # fmt: skip
        assert getattr(found, fact) == getattr(scales, fact)
    for band in bands:
        ours, theirs = found.changes(band), scales.changes(band)
        assert list(ours) == list(theirs)
        for name, change in ours.items():
            assert torch.equal(change.scale_out, theirs[name].scale_out)
            assert (change.scale_in is None) != is_two_sided
            if is_two_sided:
                assert torch.equal(change.scale_in, theirs[name].scale_in)


def test_half_precision_keeps_a_scale_to_five_digits_and_equal_scales_are_equal_files(path: Path) -> None:
    scales = make_scales("miniature")
    write_scales(path, scales)
    first, found = path.read_bytes(), read_scales(path)
    for name, change in scales.scales[0].items():
        for side in ("scale_out", "scale_in"):
            ours, theirs = 1 + getattr(found.scales[0][name], side), 1 + getattr(change, side)
            torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=0)
    write_scales(path, scales)
    assert path.read_bytes() == first


def test_sd15s_attention_on_both_sides_takes_at_most_the_bytes_that_were_promised(path: Path) -> None:
    """1.4 MB: one band in half precision has 0.4 MB, so that three bands fit, and one in full precision does."""
    layers = get_base("sd15").layers("attention")
    numbers = sum(layer.in_features + layer.out_features for layer in layers)
    assert (len(layers), numbers) == (128, 199_296)
    header = 2000
    for dtype, edges in (
        (torch.float16, (0.0, 1.0)),
        (torch.float16, (0.0, 0.3, 0.6, 1.0)),
        (torch.float32, (0.0, 1.0)),
    ):
        bands = tuple(pairwise(edges))
        write_scales(path, make_scales("sd15", bands=bands), dtype)
        payload = numbers * len(bands) * dtype.itemsize
        assert payload < path.stat().st_size < payload + header < 1_400_000
        assert read_scales(path).bands == bands


def test_scales_that_overflow_half_precision_are_not_written(path: Path) -> None:
    scales = make_scales("miniature")
    name, change = next(iter(scales.scales[0].items()))
    scales.scales[0][name] = ScaleChange(change.scale_out * 1e9, change.scale_in)
    with pytest.raises(OutputError, match=r"'band0.scale_out' holds NaN or infinite numbers"):
        write_scales(path, scales)
    assert not path.exists()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda m, t: m.update(kind="hyperdream-identity"), FileFormatError, "but 'hyperdream-scales' is expected"),
        (lambda m, t: m.update(version="2"), FileFormatError, "this release reads up to 1. Update HyperDream"),
        (lambda m, t: m.update(family="flux"), FileFormatError, "has family 'flux', but sd15, sd2, sdxl, miniature"),
        (lambda m, t: m.update(family="sd15"), BaseMismatchError, "another list of layers"),
        (lambda m, t: m.update(quantization="int2"), FileFormatError, "has quantization 'int2', but int8, int4, nf4"),
        (lambda m, t: m.update(sides="in"), FileFormatError, "has sides 'in', but out, both are known"),
        (
            lambda m, t: m.update(sides="out"),
            FileFormatError,
            r"has 'band0.scale_in' of the shape \(\d+,\), but .* None",
        ),
        (lambda m, t: m.update(integers="0" * 63), FileFormatError, "but 64 hexadecimal digits are expected"),
        (lambda m, t: m.pop("integers"), FileFormatError, "lacks 'integers' in its metadata"),
        (lambda m, t: m.update(bands="[[0, 0.5], [0.4, 1]]"), FileFormatError, "starts below 0.5, where another ends"),
        (lambda m, t: m.update(bands="[[0, 1]]"), FileFormatError, "has 'band1.scale_in' of the shape"),
        (lambda m, t: m.update(bands="[]"), FileFormatError, "but 1 or more|expected 1 or more"),
        (lambda m, t: m.update(bands="[[0]]"), FileFormatError, r"a list of 1 to 64 pairs \[start, end\] is expected"),
        (lambda m, t: t.pop("band1.scale_out"), FileFormatError, "has 'band1.scale_out' of the shape None, but"),
        (lambda m, t: t.update(extra=torch.zeros(1)), FileFormatError, r"has 'extra' of the shape \(1,\), but .* None"),
        (lambda m, t: t.update({"band0.scale_out": torch.zeros(7)}), FileFormatError, r"of the shape \(7,\), but its"),
        (lambda m, t: t["band0.scale_out"].fill_(101), FileFormatError, "changes as large as 101 times the scale"),
        (lambda m, t: t["band0.scale_in"].fill_(torch.nan), FileFormatError, "holds NaN"),
        (lambda m, t: m.update(class_noun="face\n"), FileFormatError, "has class_noun 'face.n'"),
    ],
)
def test_an_altered_file_is_refused_by_name(path: Path, change: Change, error: type[Exception], words: str) -> None:
    write_scales(path, make_scales("miniature", bands=BANDS))
    with safe_open(path, framework="pt") as file:
        metadata, names = dict(file.metadata()), list(file.keys())
        tensors = {name: file.get_tensor(name).clone() for name in names}
    change(metadata, tensors)
    save_file(tensors, path, metadata)
    with pytest.raises(error, match=words) as caught:
        read_scales(path)
    assert str(caught.value).startswith("sofia.safetensors: ")


def test_a_base_of_another_family_or_with_other_integers_is_refused(path: Path) -> None:
    scales = make_scales("miniature")
    write_scales(path, scales)
    with pytest.raises(BaseMismatchError, match=r"sofia.safetensors: was made for 'miniature', but the base is 'sdxl'"):
        read_scales(path, "sdxl")
    with pytest.raises(
        BaseMismatchError, match=r"sofia.safetensors: the scales were trained on a base in int4 with the"
    ):
        read_scales(path, "miniature", "f" * 64)
