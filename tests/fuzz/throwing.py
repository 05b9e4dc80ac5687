"""One hostile input thrown at one reader, and what is right to come back.

As a program it throws many, `python -m tests.fuzz.throwing '[["NAME", FIRST, COUNT], ...]'`, under limits of memory
and time, and prints a line of JSON before and after each, so that who started it knows which one it died of.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from hyperdream_core.errors import HyperDreamError
from tests.fuzz.readers import READERS, Reader

SECONDS, BYTES = 5, 1_000_000_000
LONGEST_MESSAGE = 2500


class Wrong(Exception):
    """What came back is neither a sane value nor a sentence."""


def good_content(reader: Reader, folder: Path) -> bytes:
    """The bytes of a good file."""
    good = folder / f"good{reader.ending}"
    reader.write(good)
    content = good.read_bytes()
    good.unlink()
    return content


def throw(name: str, content: bytes, seed: int, folder: Path, before: Callable[[], object] = lambda: None) -> bool:
    """Throw the input of that seed, which is made first, then `before` is called; whether it was refused.

    Raises:
        Wrong: what came back is neither a sane value nor a sentence of ours.
    """
    reader, chance = READERS[name], random.Random(f"{name}/{seed}")
    place = folder / f"altered{reader.ending}"
    place.write_bytes(reader.alter(content, chance))
    before()
    try:
        value = reader.read(place)
    except HyperDreamError as error:
        check_sentence(str(error), place.stem if reader.names_the_file else "")
        return True
    except Exception as error:
        raise Wrong(f"{type(error).__name__}: {str(error)[:300]}") from error
    if not reader.may_be_nan:
        for number in numbers(value):
            if number.is_floating_point() and not bool(number.isfinite().all()):
                raise Wrong("a value that is not finite")
    if reader.sane is not None and not reader.sane(value):
        raise Wrong(f"a value that is none: {str(value)[:300]}")
    return False


def check_sentence(text: str, name: str) -> None:
    """See that a refusal is one printable line of bearable length that names the file."""
    text.encode("utf-8")
    if not text.strip() or name not in text or len(text) > LONGEST_MESSAGE or "\n" in text or "\x1b" in text:
        raise Wrong(f"a refusal that is no sentence: {text[:300]!r}")


def numbers(value: object) -> Iterator[torch.Tensor]:
    """All tensors, and numbers as tensors, anywhere in a value."""
    if isinstance(value, torch.Tensor):
        yield value.detach()
    elif isinstance(value, torch.nn.Module):
        yield from (parameter.detach() for parameter in value.parameters())
    elif isinstance(value, float):
        yield torch.tensor(value, dtype=torch.float64)
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from numbers(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from numbers(one)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from numbers(getattr(value, field.name))


def main(jobs: list[tuple[str, int, int]]) -> None:
    """Throw at each reader that many inputs from a seed on."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # Its signal ends the process, wherever it is.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    for name, first, count in jobs:
        with tempfile.TemporaryDirectory() as folder:
            _throw_many(name, first, count, Path(folder))


def _throw_many(name: str, first: int, count: int, folder: Path) -> None:
    import resource

    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    content = good_content(READERS[name], folder)
    first_file = folder / f"first{READERS[name].ending}"
    first_file.write_bytes(content)
    with contextlib.suppress(HyperDreamError):
        READERS[name].read(first_file)  # what is imported on use does not count
    first_file.unlink()
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + BYTES, most))

    def start_the_clock() -> None:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)

    for seed in range(first, first + count):
        print(json.dumps({"name": name, "seed": seed}), flush=True)
        try:
            outcome = "refused" if throw(name, content, seed, folder, start_the_clock) else "read"
        except Wrong as error:
            outcome = str(error)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps({"name": name, "seed": seed, "outcome": outcome}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
