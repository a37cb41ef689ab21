"""Ctrl-C and child processes: a terminal sends it to all of them, and one of them has to answer."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


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
