"""Where the store's data is made and changed: one lock for what changes names, and directories for what is half-made.

Not for what is made there (`store.py`) nor for sweeping what the dead left (`collect.py`).
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.images.trees import remove_tree


class Workshop:
    """The directory of a store. Construction touches nothing."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._guard = threading.RLock()
        self._depth = 0

    @contextmanager
    def exclusive(self, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the store's lock, across processes and threads; `waiting` is called if somebody else has it."""
        with self._guard:
            if self._depth:
                yield
                return
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)  # setuid files of images lie below
            fd = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    waiting()
                    fcntl.flock(fd, fcntl.LOCK_EX)
                self._depth = 1
                yield
            finally:
                self._depth = 0
                os.close(fd)

    @contextmanager
    def partial(self) -> Iterator[Path]:
        """A fresh directory for something half-made; gone at the end, whatever happens, and not swept before."""
        with partial_guard(self.directory):
            work = self.directory / "partial" / secrets.token_hex(6)
            work.mkdir(parents=True, mode=0o700)
            fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            yield work
        finally:
            remove_tree(work)
            os.close(fd)


@contextmanager
def partial_guard(directory: Path) -> Iterator[None]:
    """Keep a sweep away while something is made in `partial/` and not yet locked by its maker."""
    (directory / "partial").mkdir(parents=True, exist_ok=True, mode=0o700)
    directory.chmod(0o700)  # setuid files of images lie below
    fd = os.open(directory / "partial.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
