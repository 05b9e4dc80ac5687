"""Networks in the hands of one thread at a time: whoever changes or asks them claims them, and others wait their turn.

Adapters are put into a network for the time of a call, so that two threads on one network would see each other's. A
claim is held for one step of drawing or polishing, not for the whole job: twelve jobs on one base go on in turns, and
each computes what it would have computed alone.

Claims are re-entrant within a thread, are granted in the order in which they were asked for, and those of one base
are taken all at once, so that no two threads can wait for each other. Who claims networks one by one, against another
thread's order, is told so instead of waiting for ever.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..errors import ConfigError

_LOOK_EVERY = 0.1
"""Seconds between looks at whether a waiting job has been stopped."""


@dataclass(eq=False)
class _Holding:
    """A network that is claimed."""

    network: nn.Module
    """kept, so that its number is not given to another one meanwhile"""
    thread: threading.Thread
    depth: int = 0


@dataclass(eq=False)
class _Claims:
    """Who holds what, and who waits."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    held: dict[int, _Holding] = field(default_factory=dict)
    waiting: list[tuple[threading.Thread, frozenset[int]]] = field(default_factory=list)
    """in the order of their coming"""

    def others(self, wanted: frozenset[int], me: threading.Thread) -> set[threading.Thread]:
        """The threads that hold any of these networks."""
        return {self.held[one].thread for one in wanted if one in self.held and self.held[one].thread is not me}

    def is_free(self, request: tuple[threading.Thread, frozenset[int]]) -> bool:
        """Whether it is this request's turn."""
        me, wanted = request
        if self.others(wanted, me):
            return False
        if any(holding.thread is me for holding in self.held.values()):
            # Who comes before may be waiting for what this thread holds.
            return True
        before = self.waiting[: self.waiting.index(request)]
        return not any(wanted & theirs for thread, theirs in before if thread is not me)

    def is_knotted(self, wanted: frozenset[int], me: threading.Thread) -> bool:
        """Whether those who hold what is wanted wait, over any number of others, for what `me` holds."""
        asked, open_ = set[threading.Thread](), self.others(wanted, me)
        while open_:
            one = open_.pop()
            asked.add(one)
            for thread, theirs in self.waiting:
                if thread is one:
                    found = self.others(theirs, one)
                    if me in found:
                        return True
                    open_ |= found - asked
        return False


BUILDING = threading.RLock()
"""Held while networks are built: some releases of transformers change torch's functions meanwhile, for all threads."""

_CLAIMS = _Claims()
_THREAD = threading.local()


@contextmanager
def alone_with(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Keep other threads from these networks while the context is open; waits until they are free.

    Args:
        networks: claimed together. A network and a part of it count as two: claim what the part belongs to.

    Raises:
        ConfigError: the thread that holds them has ended, or waits for this one.
    """
    wanted = frozenset(id(network) for network in networks)
    me = threading.current_thread()
    with _CLAIMS.changed:
        _wait(wanted, me)
        for network in networks:
            _CLAIMS.held.setdefault(id(network), _Holding(network, me)).depth += 1
    try:
        yield
    finally:
        with _CLAIMS.changed:
            for network in networks:
                holding = _CLAIMS.held[id(network)]
                holding.depth -= 1
                if holding.depth == 0:
                    del _CLAIMS.held[id(network)]
            _CLAIMS.changed.notify_all()


@contextmanager
def while_waiting(look: Callable[[], Any]) -> Iterator[None]:
    """Call `look` again and again while this thread waits for a network; raising there ends the waiting."""
    outer = getattr(_THREAD, "look", None)
    _THREAD.look = look
    try:
        yield
    finally:
        _THREAD.look = outer


def _wait(wanted: frozenset[int], me: threading.Thread) -> None:
    """Wait until it is this thread's turn; the condition is held before and after."""
    request = (me, wanted)
    _CLAIMS.waiting.append(request)
    try:
        while not _CLAIMS.is_free(request):
            _refuse_for_ever(wanted, me)
            if not _CLAIMS.changed.wait(_LOOK_EVERY):
                _look()
    finally:
        _CLAIMS.waiting.remove(request)
        # Whoever came after may have waited for this one only.
        _CLAIMS.changed.notify_all()


def _look() -> None:
    look = getattr(_THREAD, "look", None)
    if look is None:
        return
    # What a host does there may take its time, and ask for networks of its own.
    _CLAIMS.changed.release()
    try:
        look()
    finally:
        _CLAIMS.changed.acquire()


def _refuse_for_ever(wanted: frozenset[int], me: threading.Thread) -> None:
    if _CLAIMS.is_knotted(wanted, me):
        raise ConfigError(
            "this thread waits for a network of another thread, which waits for one of this thread; run one job after "
            "the other, or give each thread a base of its own"
        )
    if any(not thread.is_alive() for thread in _CLAIMS.others(wanted, me)):
        raise ConfigError(
            "the base is still in the hands of a thread that has ended in the middle of its work; load the base again"
        )
