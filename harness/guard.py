"""Interruption without half-made things: Ctrl-C, termination and overdue cells become exceptions where they do no harm.

Python raises KeyboardInterrupt between any two instructions, also between an instance's launch and the
line that remembers it. Under a `Guard` it is held back while something is being made or removed.
Works in the main thread; elsewhere it does nothing, as signals arrive only there.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

from runtime.errors import TareError

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Overdue(TareError):
    """A call that has a time-out of its own did not honour it."""


class Guard:
    """Signal handling for the length of a run; a context manager that puts the old handlers back."""

    def __init__(self) -> None:
        self._active = False
        self._depth = 0
        self._pending = False
        self._raised = False
        self._what = ""
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._active = True
            for number in _ENDING:
                self._old[number] = signal.signal(number, self._ended)
            self._old[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._overdue)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._active = False

    def _ended(self, number: int, frame: FrameType | None) -> None:
        self._pending = True
        self.check()

    def _overdue(self, number: int, frame: FrameType | None) -> None:
        raise Overdue(self._what, "hung beyond its time limit")

    @contextmanager
    def critical(self) -> Iterator[None]:
        """Hold back the end of the run until the block is left."""
        if not self._mine():
            yield
            return
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        self.check()

    def check(self) -> None:
        """Raise KeyboardInterrupt if the end was asked for and held back."""
        if self._pending and not self._raised and self._depth == 0 and self._mine():
            self._raised = True  # once only: a second Ctrl-C must not break the cleaning up
            raise KeyboardInterrupt

    @contextmanager
    def limit(self, seconds: float, what: str) -> Iterator[None]:
        """Raise Overdue about `what` if the block lasts beyond `seconds`: the last resort, for a call that hangs.

        Limits nest; an inner one never extends an outer one.
        """
        if not self._mine():
            yield
            return
        outer, began_s = self._what, time.monotonic()
        outer_s = signal.getitimer(signal.ITIMER_REAL)[0]
        self._what = outer if outer_s and outer_s < seconds else what
        signal.setitimer(signal.ITIMER_REAL, min(seconds, outer_s or seconds))
        try:
            yield
        finally:
            left_s = max(outer_s - (time.monotonic() - began_s), 1e-3) if outer_s else 0.0
            self._what = outer
            signal.setitimer(signal.ITIMER_REAL, left_s)

    def _mine(self) -> bool:
        return self._active and threading.current_thread() is threading.main_thread()
