from __future__ import annotations

import pytest

from hyperdream_core.formats.file_names import LONGEST_NAME, check_name, plain_name


@pytest.mark.parametrize("text", ["mara", "Mara Müller", "脸", "a.b", "x" * LONGEST_NAME])
def test_a_sound_text_is_a_name_as_it_is(text: str) -> None:
    assert plain_name(text) == text == check_name(text)


@pytest.mark.parametrize(
    "text",
    ["", " ", ".", "...", "con", "AUX.png", "nul.a.b", "a/b", "..\\x", "a\0b", "a\nb", "caf\udce9", "x" * 300,
     "脸" * 90, ".hidden", "x.", "mara.safetensors", "?*<>|", "😀" * 80, "com1"],
)  # fmt: skip
def test_any_text_gives_a_name_that_every_system_takes(text: str) -> None:
    name = plain_name(text)
    assert check_name(name) == name and plain_name(name) == name


def test_long_texts_that_begin_alike_give_different_names() -> None:
    assert plain_name("x" * 300) != plain_name("x" * 301)
