"""Ctrl-C and child processes: a terminal sends it to all of them, and one of them has to answer."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def shield_children() -> Iterator[None]:
    """Processes that are started in this block never see Ctrl-C; it stays pending for this process until the end.

    Blocking is inherited from the first instruction on, so that a child does not print a traceback while it imports.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def catch_interrupt() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C of the block sets; a second one is a KeyboardInterrupt.

    For what goes on until then and has something to finish: an exception could fall into a destructor, which loses it.
    Only the main thread may ask for it.
    """
    caught = threading.Event()

    def note(*_: Any) -> None:
        if caught.is_set():
            raise KeyboardInterrupt
        caught.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, before)
