"""One thread that reads many sockets, so that a thousand idle instances cost the host a thousand sockets.

Not what is read: each source takes that itself, and must not wait.
"""

from __future__ import annotations

import os
import select
import threading
from typing import Protocol

_BUFFER_BYTES = 256 << 10


class Source(Protocol):
    """Whoever owns a socket that a `Reader` watches."""

    def receive(self, buffer: memoryview) -> bool:
        """Take what has arrived, `buffer` being free for it; False when there will be no more."""

    def release(self) -> None:
        """Close the socket: nobody watches it any more."""


class Reader:
    """The thread that waits for all its sources at once. Only it has their sockets closed.

    So a descriptor number cannot come to mean another source between an event and its handling.
    """

    def __init__(self, name: str) -> None:
        self._epoll = select.epoll()
        self._sources: dict[int, Source] = {}
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def add(self, source: Source, fd: int) -> None:
        """Have `source` receive whenever there is something at `fd`, its socket."""
        self._sources[fd] = source
        self._epoll.register(fd, select.EPOLLIN)

    def _run(self) -> None:
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        while True:
            for fd, _ in self._epoll.poll():
                if not self._sources[fd].receive(buffer):
                    self._epoll.unregister(fd)
                    self._sources.pop(fd).release()


_readers: dict[tuple[int, str], Reader] = {}
_readers_lock = threading.Lock()


def reader(name: str) -> Reader:
    """This process's reader of that name; a forked child gets its own, as threads do not survive the fork."""
    with _readers_lock:
        key = os.getpid(), name
        if key not in _readers:
            _readers[key] = Reader(name)
        return _readers[key]
