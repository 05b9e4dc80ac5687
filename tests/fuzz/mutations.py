"""Hostile forms of a good file, drawn from a seed: bytes that change, headers that lie, texts nobody would write."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]
Alter = Callable[[dict[str, Any], random.Random], dict[str, Any]]

_DEEP = "[" * 3000 + "]" * 3000
NUMBERS = (0, -1, 1, 2, 3, 65, 10**9, -(10**9), 2**31, 2**63, 10**38, 0.5, -0.0, 1e-40, 1e30, 1e308)
RAW = ("NaN", "-Infinity", "1e999", "9" * 5000, _DEEP, '{"a":1,"a":2}', '"\\ud800"', '"\\udfff\\n"', "[" * 100, "", "{")
"""JSON as text, which no writer gives"""
TEXTS = (
    "", " ", "0", "-1", "99999", "100000", "nan", "1e999", "None", "null", "[]", "{}", "x" * 100_000, "\x1b[2J\x07\r\n",
    "../../etc/passwd", "a\x00b", "\u202eabc", "\U0001f600" * 50, "llama", "sd15", "sdxl", "miniature", "attention",
    "layers", "stacked", "hyperdream-identity", "hyperdream-hypernetwork", "2", "[[0,0.5],[0.5,1]]", "[[0,1e999]]",
)  # fmt: skip
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "C64", "X", "", "f32")
SHAPES: tuple[list[int], ...] = (
    [], [0], [1], [-1], [2**31], [2**62, 4], [0, 2**62], [1] * 9, [1] * 65, [1] * 1000, [10**9] * 3,
)  # fmt: skip
PATTERNS = (
    b"\xff", b"\x7b", b"\x00", b"\x7f\x7b", b"\x00\x7c", b"\x00\x00\x80\x7f", b"\x00\x00\xc0\x7f", b"\xc8",
)  # fmt: skip
"""bytes of which a tensor is made: NaN, infinity, the largest, the smallest"""
WIDTH = {"F64": 8, "I64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "BOOL": 1}


MOST_ENTRIES = 20_000
"""of a list that repeats itself: more would take longer to write than to read"""


class Raw(str):
    """A text that stands in JSON as it is."""


def flipped(content: bytes, chance: random.Random) -> bytes:
    """The content cut off, with bytes changed, or with a piece of it taken out; most of it where headers are."""
    kind = chance.randrange(4)
    if kind == 0:
        return content[: chance.randrange(len(content))]
    changed = bytearray(content)
    head = min(len(content), 4096)
    if kind == 1:
        start, length = chance.randrange(head), chance.randrange(1, 64)
        return bytes(changed[:start] + changed[start + length :])
    for _ in range(chance.choice((1, 1, 3, 20))):
        place = chance.randrange(head if chance.random() < 0.8 else len(content))
        changed[place] = chance.randrange(256) if kind == 2 else changed[place] ^ (1 << chance.randrange(8))
    return bytes(changed)


def json_altered(content: bytes, chance: random.Random) -> bytes:
    """A JSON text in which one value to three are others."""
    if chance.random() < 0.2:
        return flipped(content, chance)
    value = json.loads(content)
    for _ in range(chance.choice((1, 1, 2, 3))):
        value = altered_value(value, chance)
    return dumped(value).encode("utf-8", "surrogatepass")


def altered_value(value: Any, chance: random.Random) -> Any:
    """The JSON value with one place of it changed, removed, doubled or added to."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value))
        kind = chance.random()
        if kind < 0.1:
            return {name: one for name, one in value.items() if name != key}
        if kind < 0.2:
            return {**value, chance.choice(TEXTS)[:1000]: hostile(chance)}
        return {**value, key: altered_value(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.7:
        place = chance.randrange(len(value))
        kind = chance.random()
        if kind < 0.15:
            return value[:place]
        if kind < 0.3:
            return (value * chance.choice((2, 100, 5000)))[:MOST_ENTRIES]
        return [*value[:place], altered_value(value[place], chance), *value[place + 1 :]]
    return hostile(chance)


def hostile(chance: random.Random) -> Any:
    """A value that stands in no good file."""
    kind = chance.randrange(6)
    if kind < 2:
        return chance.choice(NUMBERS)
    if kind == 2:
        return chance.choice(TEXTS)
    if kind == 3:
        return Raw(chance.choice(RAW))
    return chance.choice((None, True, False, [], {}, [0] * 20_000, [[]], {"kind": "vit"}, {"a": {"b": [1]}}))


def dumped(value: Any) -> str:
    """JSON in which a `Raw` stands as it is, and halves of characters too."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(str(key))}:{dumped(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list) and len(value) < 1000:
        return "[" + ",".join(map(dumped, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def header_altered(content: bytes, chance: random.Random, altered: Alter | None = None) -> bytes:
    """A safetensors file whose tensors, table or metadata are others; mostly one that the format itself allows.

    Args:
        content: of a good one.
        chance: decides.
        altered: alters the tensors, name -> (dtype, shape, bytes); `other_tensors` if none is given.
    """
    if chance.random() < 0.15:
        return flipped(content, chance)
    size = int.from_bytes(content[:8], "little")
    table, payload = json.loads(content[8 : 8 + size]), content[8 + size :]
    facts = table.pop("__metadata__", {})
    tensors = {name: (one["dtype"], one["shape"], payload[slice(*one["data_offsets"])]) for name, one in table.items()}
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        if chance.random() < 0.55:
            facts = _other_facts(facts, chance)
        else:
            tensors = (altered or other_tensors)(tensors, chance)
    return _file(facts, tensors, chance)


def _other_facts(facts: Any, chance: random.Random) -> Any:
    """Metadata with one entry changed; in an entry that is itself JSON, one value of it."""
    if not isinstance(facts, dict) or not facts:
        return facts
    key = chance.choice(sorted(facts))
    kind = chance.random()
    if kind < 0.1:
        return {name: one for name, one in facts.items() if name != key}
    if kind < 0.25:
        names = ("lora_adapter_metadata", "ss_network_alpha", "ss_network_args", "bands", "version", "kind", "notes")
        inner = dumped({"unet.lora_alpha": hostile(chance), "conv_alpha": hostile(chance)})
        return {**facts, chance.choice(names): chance.choice((*TEXTS, *RAW, inner))}
    text = str(facts[key])
    if text.startswith(("{", "[")) and kind < 0.85:
        try:
            return {**facts, key: dumped(altered_value(json.loads(text), chance))}
        except (ValueError, RecursionError):
            pass
    if kind > 0.97:
        return {**facts, key: hostile(chance)}
    return {**facts, key: chance.choice((*TEXTS, *RAW))}


def other_tensors(tensors: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """Tensors with one removed, renamed, added, cut, turned into other numbers or given another shape."""
    if not tensors:
        return {"a": ("F32", [1], bytes(4))}
    name = chance.choice(sorted(tensors))
    dtype, shape, data = tensors[name]
    kind = chance.randrange(7)
    if kind == 0:
        return {key: one for key, one in tensors.items() if key != name}
    if kind == 1:
        other = chance.choice((name + "x", name.replace("_", ".", 1), "lora_te_" + name, "n" * 2000, "a\x1b\n", ""))
        return {(other if key == name else key): one for key, one in tensors.items()}
    if kind == 2:
        return {**tensors, chance.choice(("extra", name + ".alpha", name + ".dora_scale")): tensors[name]}
    if kind == 3 and shape and shape[0] > 1:
        return {**tensors, name: (dtype, [shape[0] - 1, *shape[1:]], data[: len(data) // shape[0] * (shape[0] - 1)])}
    if kind == 4:
        return {
            **tensors,
            name: (dtype, chance.choice(([*shape, 1], [1, *shape], shape[::-1], [1] * 60 + shape)), data),
        }
    if kind == 5:
        other, width = chance.choice(DTYPES), WIDTH.get(dtype, 4)
        count = len(data) // width
        return {**tensors, name: (other, shape, bytes(count * WIDTH.get(other, 4)))}
    pattern = chance.choice(PATTERNS)
    return {**tensors, name: (dtype, shape, (pattern * (len(data) // len(pattern) + 1))[: len(data)])}


def _file(facts: Any, tensors: dict[str, Any], chance: random.Random) -> bytes:
    table: dict[str, Any] = {"__metadata__": facts}
    end = 0
    for name, (dtype, shape, data) in tensors.items():
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    payload = b"".join(data for _, _, data in tensors.values())
    if chance.random() < 0.2 and tensors:
        entry = table[chance.choice(sorted(tensors))]
        key = chance.choice(("dtype", "shape", "data_offsets"))
        entry[key] = {"dtype": chance.choice(DTYPES), "shape": chance.choice(SHAPES)}.get(key, hostile(chance))
    text = dumped(table).encode("utf-8", "surrogatepass")
    if chance.random() < 0.05:
        text = text.replace(
            b'"__metadata__"', chance.choice((b'"__metadata__":{"kind":"a"},"__metadata__"', b'"m"')), 1
        )
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + payload
