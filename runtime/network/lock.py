"""Being alone: with a state root's networks, or with the choice of a subnet on this host."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from runtime.errors import TareError

_TIMEOUT_S: Final = 30.0
_PAUSE_S: Final = 0.01


class Lock:
    """A lock on a file, against other processes and threads; one thread may take it again and again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._threads = threading.RLock()
        self._depth = 0
        self._fd = -1

    def __enter__(self) -> None:
        self._threads.acquire()
        try:
            if self._fd < 0:
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if self._depth == 0:
                fcntl.flock(self._fd, fcntl.LOCK_EX)
            self._depth += 1
        except BaseException:
            self._threads.release()
            raise

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        self._threads.release()

    def close(self) -> None:
        """Give the descriptor back."""
        with self._threads:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


@contextmanager
def alone_on_this_host() -> Iterator[None]:
    """Keep other state roots from choosing a subnet meanwhile: an abstract socket's name is unique in a namespace."""
    deadline = time.monotonic() + _TIMEOUT_S
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as name:
        while True:
            with suppress(OSError):
                name.bind("\0tare-subnet")
                break
            if time.monotonic() > deadline:
                raise TareError("choosing a subnet", f"somebody has been doing so for {_TIMEOUT_S:g} s", "try again")
            time.sleep(_PAUSE_S)
        yield
