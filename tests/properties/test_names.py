"""Names: of layers in every dialect and back, and of files on every system."""

from __future__ import annotations

import sys
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperdream_core.bases import BASES, TARGET_SETS, BaseFamily
from hyperdream_core.bases.keys import from_kohya, from_ldm, from_peft, to_kohya, to_ldm, to_peft
from hyperdream_core.errors import BaseMismatchError, ConfigError
from hyperdream_core.formats.file_names import LONGEST_NAME, SUFFIX, check_name

if sys.version_info >= (3, 13):
    from ntpath import isreserved as is_reserved
else:

    def is_reserved(file: str) -> bool:
        return PureWindowsPath(file).is_reserved()


families = st.sampled_from(list(BASES.values()))


@given(families, st.data())
def test_a_layer_comes_back_from_every_dialect(family: BaseFamily, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(family.layers(TARGET_SETS[-1]))).name
    assert from_kohya(to_kohya(name, family), family) == name
    assert from_peft(to_peft(name, family), family) == name
    assert from_ldm(to_ldm(name, family), family) == name
    assert "." not in to_kohya(name, family)


@pytest.mark.parametrize("family", BASES.values(), ids=lambda family: family.name)
def test_no_two_layers_share_a_name(family: BaseFamily) -> None:
    layers = [layer.name for layer in family.layers(TARGET_SETS[-1])]
    for translate in (to_kohya, to_peft, to_ldm):
        assert len({translate(name, family) for name in layers}) == len(layers)


@given(families, st.text(max_size=60))
def test_a_key_is_a_layers_name_or_refused_and_never_guessed(family: BaseFamily, key: str) -> None:
    for translate, back in ((from_kohya, to_kohya), (from_peft, to_peft), (from_ldm, to_ldm)):
        try:
            name = translate(key, family)
        except BaseMismatchError:
            continue
        # Hypothesis also tries strings out of our own source, and some of those are names.
        assert back(name, family) == key


@given(st.text(max_size=130))
def test_an_accepted_name_is_one_file_of_one_folder_everywhere(name: str) -> None:
    try:
        plain = check_name(name)
    except ConfigError:
        return
    file = f"{plain}{SUFFIX}"
    assert check_name(file) == plain
    assert len(plain.encode()) <= LONGEST_NAME
    assert Path("folder", file).parent == Path("folder") and Path("folder", file).name == file
    assert PureWindowsPath("folder", file).parent == PureWindowsPath("folder")
    assert not is_reserved(file)


@given(st.text(alphabet="abcdefg123 äß漢字-_", min_size=1, max_size=30).filter(lambda text: text.strip()))
def test_an_ordinary_name_is_taken_as_it_is(name: str) -> None:
    assert check_name(name) == name.strip()
