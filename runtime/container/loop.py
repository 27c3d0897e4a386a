"""An event loop of one thread over epoll, for the keeper: descriptors, and moments to come. Lean."""

from __future__ import annotations

import heapq
import itertools
import select
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeAlias

IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT
Handler: TypeAlias = Callable[[int], object]
"""Is told the events."""


class Loop:
    """Handlers by descriptor, and calls by time. `trouble` is called in the handling of what one of them raised."""

    def __init__(self, trouble: Callable[[], None] = lambda: None) -> None:
        self._trouble = trouble
        self._poll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def watch(self, descriptor: int, handler: Handler, events: int = IN) -> None:
        """Call `handler` whenever one of `events`, a hang-up or an error is there. Watched already: change it."""
        known = descriptor in self._handlers
        self._handlers[descriptor] = handler
        (self._poll.modify if known else self._poll.register)(descriptor, events)

    def forget(self, descriptor: int) -> None:
        """Watch it no longer; one that is not watched is no error."""
        if self._handlers.pop(descriptor, None) is not None:
            with suppress(OSError):  # closed already, it is not watched any more
                self._poll.unregister(descriptor)

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call once, `delay_s` from now."""
        heapq.heappush(self._calls, (time.monotonic() + delay_s, next(self._numbers), call))

    def run(self, until: Callable[[], bool]) -> None:
        """Serve until `until()` says so, asked after each round."""
        while not until():
            self.round()

    def round(self) -> None:
        """Wait for something to happen, and see to it."""
        timeout_s = max(0.0, self._calls[0][0] - time.monotonic()) if self._calls else -1
        # A handler may forget and close a descriptor whose number another one gets in the same round.
        ready = [
            (descriptor, events, self._handlers.get(descriptor)) for descriptor, events in self._poll.poll(timeout_s)
        ]
        for descriptor, events, handler in ready:
            if handler is not None and self._handlers.get(descriptor) is handler:
                try:
                    handler(events)
                except Exception:  # noqa: BLE001 - everything kept would die of one descriptor's trouble
                    self._trouble()
                    self.forget(descriptor)
        while self._calls and self._calls[0][0] <= time.monotonic():
            call = heapq.heappop(self._calls)[2]
            try:
                call()
            except Exception:  # noqa: BLE001 - as above
                self._trouble()
