from __future__ import annotations

import pytest

from hyperdream_core.errors import PromptError
from hyperdream_core.pipelines.prompts import foreign_syntax, insert_identifier, names_subject, without_identifier


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a [V] face, smiling", "a sks face, smiling"),
        ("a [v] face and [V] again", "a sks face and sks again"),
        ("a sks face", "a sks face"),
        ("SKS, sad", "SKS, sad"),
    ],
)
def test_a_prompt_that_names_the_subject_is_taken(prompt: str, expected: str) -> None:
    assert insert_identifier(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "proposal"),
    [
        ("a face, smiling", "a sks face, smiling"),
        ("portrait of a Face", "portrait of a sks Face"),
        ("at the beach", "a sks face, at the beach"),
        ("defaced asks", "a sks face, defaced asks"),
        ("", "a sks face"),
    ],
)
def test_a_prompt_that_names_nobody_is_refused_with_a_proposal(prompt: str, proposal: str) -> None:
    with pytest.raises(PromptError) as refused:
        insert_identifier(prompt)
    assert f"write {proposal!r}" in str(refused.value)
    assert insert_identifier(prompt, missing="insert") == proposal


def test_identifiers_may_look_like_patterns() -> None:
    assert insert_identifier("a [V] pet", "s+k\\1", "pet") == "a s+k\\1 pet"
    assert names_subject("a s+k pet", "s+k") and not names_subject("a ssk pet", "s+k")


@pytest.mark.parametrize("prompt", ["a sks face, sad", "a [V] face, sad"])
def test_the_base_alone_is_asked_for_anyone(prompt: str) -> None:
    assert without_identifier(prompt, "sks") == "a face, sad"


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a [V] face, (sad:1.3), [hat], BREAK, <lora:a:0.8>", ["(sad:1.3)", "[hat]", "BREAK", "<lora:a:0.8>"]),
        ("a [v] face, ((sad)), [cat:dog:0.5]", ["((sad))", "[cat:dog:0.5]"]),
        ("a [V] face (in the rain), at 12:30, break of day", []),
        ("((((" * 1000 + "a" * 2000, []),
    ],
)  # fmt: skip
def test_other_programs_prompt_syntax_is_found(prompt: str, found: list[str]) -> None:
    assert foreign_syntax([prompt, prompt]) == found
