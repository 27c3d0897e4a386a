"""How far a transfer is: bytes, rate and time remaining, said in lines at most once a second.

Not for how a terminal shows them: whoever gives `say` decides.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

Say = Callable[[str], None]
_EVERY_S = 1.0


def silent(text: str) -> None:
    """Say nothing."""


class Progress:
    """Counts the bytes of one transfer, from several threads; `total_bytes` is what they will be."""

    def __init__(self, what: str, total_bytes: int, say: Say, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._total_bytes, self._say, self._clock = what, total_bytes, say, clock
        self._done_bytes = self._had_bytes = 0
        self._begin_s = self._said_s = clock()
        self._lock = threading.Lock()

    def had(self, size_bytes: int) -> None:
        """Some bytes were here already: they say nothing of the rate."""
        with self._lock:
            self._had_bytes += size_bytes
            self._done_bytes += size_bytes

    def add(self, size_bytes: int) -> None:
        """Some bytes arrived or left; negative when they have to come again."""
        with self._lock:
            self._done_bytes += size_bytes
            now_s = self._clock()
            if now_s - self._said_s < _EVERY_S:
                return
            self._said_s = now_s
            line = self._line(now_s)
        self._say(line)

    def _line(self, now_s: float) -> str:
        rate = max(0, self._done_bytes - self._had_bytes) / max(1e-9, now_s - self._begin_s)
        left = f"{(self._total_bytes - self._done_bytes) / rate:.0f} s left" if rate else "waiting"
        done, total = self._done_bytes / 2**20, self._total_bytes / 2**20
        return f"{self._what}: {done:.1f} of {total:.1f} MiB, {rate / 2**20:.1f} MiB/s, {left}"
