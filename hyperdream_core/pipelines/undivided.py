"""Moments that Ctrl-C does not divide: what has begun to change is changed wholly before the interrupt is heeded."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def undivided() -> Iterator[None]:
    """Hold an interrupt back until the context closes; keep what is within short.

    Only the main thread is ever interrupted, and only where Python or a host has asked for a signal handler; anywhere
    else this does nothing.
    """
    handler = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    if not callable(handler):
        yield
        return
    held: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if held:
            handler(*held[0])
