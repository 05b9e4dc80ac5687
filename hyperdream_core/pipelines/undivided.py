"""Moments that Ctrl-C does not divide: what has begun to change is changed wholly before the interrupt is heeded.

A request to end (SIGTERM), which otherwise ends a program without a word, stops a training as Ctrl-C does.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = ("SIGINT", "SIGTERM")


@contextmanager
def undivided() -> Iterator[None]:
    """Hold interrupts back until the context closes; keep what is within short.

    Only the main thread is ever interrupted, and only where Python or a host has asked for a signal handler; anywhere
    else this does nothing.
    """
    handlers: dict[int, Callable[..., Any]] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in _SIGNALS):
            handler = signal.getsignal(number)
            if callable(handler):
                handlers[number] = handler
    held: list[tuple[int, FrameType | None]] = []
    is_open = True

    def hold(number: int, frame: FrameType | None) -> None:
        if is_open:
            held.append((number, frame))
        else:
            # Left behind, where something else was raised while the handlers were given back.
            handlers[number](number, frame)

    try:
        for number in handlers:
            signal.signal(number, hold)
        yield
    finally:
        is_open = False
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if held:
            handlers[held[0][0]](*held[0])


@contextmanager
def ended_like_stopped() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM, too, unless somebody else handles it."""
    is_ours = (
        threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if is_ours:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
