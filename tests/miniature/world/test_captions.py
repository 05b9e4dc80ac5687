"""Captions say what a context holds, and can be read back."""

from __future__ import annotations

import torch

from hyperdream_core.miniature.world.captions import ATTRIBUTES, Context, make_captions, parse_caption, unknown_words


def _context(expression: int, accessory: int, background: int, style: int) -> Context:
    return Context(*(torch.tensor([index]) for index in (expression, accessory, background, style)))


def test_a_caption_has_the_papers_form() -> None:
    assert make_captions(_context(1, 2, 1, 0)) == ["a sks face, smiling, wearing a hat, at the beach, photo"]


def test_no_accessory_is_not_said_and_a_general_subject_has_no_identifier() -> None:
    assert make_captions(_context(0, 0, 0, 3), "pet", None) == ["a pet, calm, in a studio, sepia"]


def test_dropped_attributes_are_left_unsaid() -> None:
    dropped = torch.tensor([[True, False, True, False]])
    assert make_captions(_context(1, 1, 1, 1), dropped=dropped) == ["a sks face, wearing glasses, watercolour"]


def test_every_context_can_be_read_back() -> None:
    for name, values in ATTRIBUTES.items():
        for index in range(len(values)):
            chosen = dict.fromkeys(ATTRIBUTES, 1) | {name: index}
            caption = make_captions(Context(**{key: torch.tensor([value]) for key, value in chosen.items()}))[0]
            assert parse_caption(caption) == chosen


def test_unknown_words_are_named_in_order() -> None:
    assert unknown_words("a sks face, riding a unicorn, photo") == ["riding", "unicorn"]
