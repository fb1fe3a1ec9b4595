"""Ctrl-C and SIGTERM as a request to stop after the running step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupt:
    """Whether a stop was requested, and by which signal. A second Ctrl-C raises `KeyboardInterrupt` at once."""

    def __init__(self) -> None:
        self._requested = threading.Event()
        self.reason = ""

    @property
    def requested(self) -> bool:
        """Whether a signal has asked for a stop since `listening` began."""
        return self._requested.is_set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch SIGINT and SIGTERM while inside, and restore the earlier handlers. Only a main thread can catch signals."""
        self._requested.clear()
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def request(number: int, _frame: object) -> None:
            if self.requested and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.reason = f"stopped by {signal.Signals(number).name}"
            self._requested.set()

        before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
